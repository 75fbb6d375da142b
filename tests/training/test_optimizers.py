"""Optimizers and schedules by name: each trains, each option counts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from finetuner.inference.mlp_encoder import MLPEncoder
from training.config import DEFAULT_LEARNING_RATE, DEFAULT_LOSS_LEARNING_RATE
from training.freezing import freeze
from training.losses.objective import Objective
from training.optimizers import (
    LAYER_DECAY,
    OPTIMIZERS,
    SchedulerOptions,
    check_optimizer,
    check_scheduler,
    make_optimizer,
    make_optimizers,
    make_scheduler,
    needs_closure,
)
from training.task import Task


@dataclass
class Config:
    """The part of a FitConfig that is read here."""

    optimizer: str = 'Adam'
    optimizer_options: dict[str, Any] | None = None
    learning_rate: float | None = None
    loss_optimizer: str | None = None
    loss_optimizer_options: dict[str, Any] | None = None


class Weighted(Objective):
    """With a temperature and class weights, as asked for."""

    shape = 'labelled'

    def __init__(self, temperature: bool = False, classes: int = 0):
        super().__init__()
        if temperature:
            self.logit_scale = nn.Parameter(torch.tensor(2.0))
        if classes:
            self.proxies = nn.Parameter(torch.ones(classes, 5))


@dataclass
class Parts:
    encoder: MLPEncoder = field(default_factory=lambda: MLPEncoder(4, [6, 7, 5]))
    objective: Objective = field(default_factory=Weighted)

    @property
    def task(self) -> Task:
        return Task({'model': self.encoder}, self.objective)


def rates(optimizer: torch.optim.Optimizer, **modules: nn.Module) -> dict[str, float]:
    """The learning rates of modules; KeyError if a weight is in no group."""
    by_weight = {id(weight): group['lr'] for group in optimizer.param_groups for weight in group['params']}
    found = {name: {by_weight[id(weight)] for weight in module.parameters()} for name, module in modules.items()}
    return {name: rate for name, (rate,) in found.items()}


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_trains(name):
    torch.manual_seed(0)
    task = Parts(objective=Weighted(temperature=True, classes=3)).task
    # rates that suit the problem, where the defaults are for pretrained models
    rate = {'Adadelta': 1.0, 'LBFGS': 1.0, 'SGD': 0.02, 'ASGD': 0.02}.get(name, 0.01)
    optimizers = make_optimizers(task, Config(name, {'lr': rate}, loss_optimizer_options={'lr': rate}))
    inputs = torch.randn(16, 4)
    before = [parameter.detach().clone() for parameter in task.parameters()]

    def closure() -> torch.Tensor:
        task.zero_grad()
        scores = task.encoders['model'](tensor=inputs) @ task.objective.proxies.T * task.objective.logit_scale
        loss = (scores - torch.eye(3).repeat(6, 1)[:16]).square().mean()
        loss.backward()
        return loss

    losses = []
    for _ in range(25):
        if any(map(needs_closure, optimizers)):
            losses.append([float(optimizer.step(closure).detach()) for optimizer in optimizers][0])
        else:
            losses.append(float(closure().detach()))
            for optimizer in optimizers:
                optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert not any(torch.equal(old, new) for old, new in zip(before, task.parameters(), strict=True))


def test_only_lbfgs_evaluates_the_batch_itself():
    weights = [{'params': [nn.Parameter(torch.ones(2))]}]
    for name in OPTIMIZERS:
        optimizer = make_optimizer(name, weights, 0.1, None)
        assert needs_closure(optimizer) == needs_closure(name) == (name == 'LBFGS')

    class Wrapped:
        optimizer = make_optimizer('LBFGS', weights, 0.1, None)

    assert needs_closure(Wrapped())


def test_sparse_adam_leaves_rows_alone_that_a_batch_has_not_touched():
    torch.manual_seed(0)
    table, dense = nn.Embedding(6, 3), nn.Linear(3, 2)
    twin = copy.deepcopy(dense)
    before = table.weight.detach().clone()
    groups = [{'params': [*table.parameters(), *dense.parameters()]}]
    optimizer = make_optimizer('SparseAdam', groups, 0.1, None)
    adam = make_optimizer('Adam', [{'params': list(twin.parameters())}], 0.1, None)
    for rows in ([0, 1], [1, 2], [1, 5]):
        optimizer.zero_grad()
        adam.zero_grad()
        vectors = table(torch.tensor(rows))
        dense(vectors).square().sum().backward()
        twin(vectors.detach()).square().sum().backward()
        optimizer.step()
        adam.step()
    moved = (table.weight != before).any(1)
    assert moved.tolist() == [True, True, True, False, False, True]
    torch.testing.assert_close(dense.weight, twin.weight)  # no rows of zeros: Adam


def test_sparse_adam_is_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(5, 3))
    options = {'betas': (0.8, 0.9), 'eps': 1e-3, 'maximize': True}
    optimizers = OPTIMIZERS['SparseAdam']([ours], 0.1, **options), torch.optim.SparseAdam([theirs], 0.1, **options)
    for rows in ([0, 1], [1, 2], [1, 4], [], [0, 1, 2, 3, 4]):
        ours.grad = torch.zeros(5, 3)
        ours.grad[rows] = torch.randn(len(rows), 3)
        theirs.grad = ours.grad.to_sparse(1)
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours, theirs)


def test_momentum_does_not_move_rows_that_sparse_adam_skips():
    table = nn.Parameter(torch.ones(2, 3))
    optimizer = make_optimizer('SparseAdam', [{'params': [table]}], 0.1, None)
    table.grad = torch.ones(2, 3)
    optimizer.step()
    once = table.detach().clone()
    table.grad = torch.tensor([[1.0, 1, 1], [0, 0, 0]])
    optimizer.step()
    assert (table[0] != once[0]).all() and (table[1] == once[1]).all()


def test_learning_rates_by_default():
    parts = Parts(objective=Weighted(temperature=True, classes=3))
    encoder, loss = make_optimizers(parts.task, Config())
    assert rates(encoder, encoder=parts.encoder) == {'encoder': DEFAULT_LEARNING_RATE}
    # a temperature is no class weight that must travel far
    assert encoder.param_groups[-1]['params'] == [parts.objective.logit_scale]
    assert encoder.param_groups[-1]['lr'] == DEFAULT_LEARNING_RATE
    assert [group['params'] for group in loss.param_groups] == [[parts.objective.proxies]]
    assert loss.param_groups[0]['lr'] == DEFAULT_LOSS_LEARNING_RATE

    (lbfgs,) = make_optimizers(Parts().task, Config('LBFGS'))
    assert lbfgs.param_groups[0]['lr'] == 1  # 5e-5 of its steps would be no movement at all
    (lbfgs,) = make_optimizers(Parts().task, Config('LBFGS', learning_rate=0.5))
    assert lbfgs.param_groups[0]['lr'] == 0.5


def test_learning_rates_that_are_given():
    parts = Parts(objective=Weighted(temperature=True, classes=3))
    encoder, _ = make_optimizers(parts.task, Config(learning_rate=0.3))
    assert {group['lr'] for group in encoder.param_groups} == {0.3}
    encoder, _ = make_optimizers(parts.task, Config(learning_rate=0.3, optimizer_options={'lr': 0.2}))
    assert {group['lr'] for group in encoder.param_groups} == {0.2}

    encoder, loss = make_optimizers(
        parts.task, Config('AdamW', loss_optimizer='SGD', loss_optimizer_options={'lr': 7, 'momentum': 0.5})
    )
    assert type(encoder) is torch.optim.AdamW and type(loss) is torch.optim.SGD
    assert loss.param_groups[0]['lr'] == 7 and loss.param_groups[0]['momentum'] == 0.5
    assert len(loss.param_groups[0]['params']) == 2  # the temperature too, now that it was asked for


def test_a_temperature_does_not_decay():
    parts = Parts(objective=Weighted(temperature=True))
    (optimizer,) = make_optimizers(parts.task, Config('AdamW', {'weight_decay': 0.5}))
    assert [group['weight_decay'] for group in optimizer.param_groups] == [0.5, 0.0]


def test_layers_learn_the_slower_the_nearer_they_are_to_the_input():
    parts = Parts()
    parts.encoder.add_head(3)
    (optimizer,) = make_optimizers(parts.task, Config('AdamW', {LAYER_DECAY: 0.5, 'weight_decay': 0.2}, 0.4))
    one, two, three = parts.encoder.layer_groups()
    assert rates(optimizer, one=one, two=two, three=three, head=parts.encoder.head) == {
        'one': 0.1,
        'two': 0.2,
        'three': 0.4,
        'head': 0.4,
    }
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0.2}


def test_each_of_two_towers_decays_by_itself():
    text, vision = MLPEncoder(4, [6, 5]), MLPEncoder(3, [6, 7, 5])
    task = Task({'clip-text': text, 'clip-vision': vision}, Weighted(temperature=True))
    (optimizer,) = make_optimizers(task, Config('SGD', {LAYER_DECAY: 0.5}, 0.4))
    layers = {f'text {n}': part for n, part in enumerate(text.layer_groups())}
    layers |= {f'vision {n}': part for n, part in enumerate(vision.layer_groups())}
    assert list(rates(optimizer, **layers).values()) == [0.2, 0.4, 0.1, 0.2, 0.4]
    assert sum(len(group['params']) for group in optimizer.param_groups) == 4 + 6 + 1


def test_an_encoder_may_have_a_learning_rate_and_a_weight_decay_of_its_own():
    text, vision = MLPEncoder(4, [6, 5]), MLPEncoder(3, [6, 7, 5])
    task = Task({'clip-text': text, 'clip-vision': vision}, Weighted(temperature=True))
    options = {'weight_decay': 0.2, 'clip-text': {'lr': 1e-2, 'weight_decay': 0.0}, 'clip-vision': {'lr': 1e-3}}
    (optimizer,) = make_optimizers(task, Config('AdamW', options, 0.4))
    assert rates(optimizer, text=text, vision=vision, temperature=task.objective) == {
        'text': 1e-2,
        'vision': 1e-3,
        'temperature': 0.4,
    }
    decays = {group['lr']: group['weight_decay'] for group in optimizer.param_groups}
    assert decays == {1e-2: 0.0, 1e-3: 0.2, 0.4: 0.0}

    (optimizer,) = make_optimizers(task, Config('SGD', {LAYER_DECAY: 0.5, 'clip-vision': {'lr': 0.1}}, 0.4))
    layers = {f'text {n}': part for n, part in enumerate(text.layer_groups())}
    layers |= {f'vision {n}': part for n, part in enumerate(vision.layer_groups())}
    assert list(rates(optimizer, **layers).values()) == pytest.approx([0.2, 0.4, 0.025, 0.05, 0.1])

    with pytest.raises(ValueError, match='clip-text is no encoder of this model, which has model'):
        make_optimizers(Parts().task, Config('AdamW', {'clip-text': {'lr': 0.1}}))


def test_frozen_weights_are_in_no_optimizer():
    parts = Parts()
    freeze(parts.encoder, 2)
    (optimizer,) = make_optimizers(parts.task, Config())
    assert [len(group['params']) for group in optimizer.param_groups] == [2]
    freeze(parts.encoder, True)
    with pytest.raises(ValueError, match='nothing to train'):
        make_optimizers(parts.task, Config())
    parts.objective = Weighted(classes=2)
    (optimizer,) = make_optimizers(parts.task, Config())
    assert optimizer.param_groups[0]['params'] == [parts.objective.proxies]


def test_fused_where_torch_can():
    weights = [{'params': [nn.Parameter(torch.ones(2))]}]
    fused = {name for name in OPTIMIZERS if make_optimizer(name, weights, 0.1, None).defaults.get('fused')}
    assert fused == {'Adam', 'AdamW', 'SGD', 'Adagrad'}
    assert not make_optimizer('Adam', weights, 0.1, {'foreach': True}).defaults['fused']


@pytest.mark.parametrize(
    'name, options, message',
    [
        ('Adem', {}, 'unknown optimizer .Adem.: did you mean'),
        ('Adam', {'momentum': 1}, 'optimizer_options: unknown option of Adam .momentum.'),
        ('Adam', {'betas': [2, 3]}, 'optimizer_options of Adam: '),
        ('Adam', {LAYER_DECAY: 1.5}, 'layer_wise_lr_decay is 1.5: give a number above 0'),
        ('LBFGS', {LAYER_DECAY: 0.5}, 'LBFGS has one learning rate'),
        ('LBFGS', {'clip-text': {'lr': 0.5}}, 'clip-text: LBFGS has one learning rate'),
        ('Adam', {'clip-text': 0.5}, 'clip-text is 0.5: give options by their names, such as {"lr": 1e-5}'),
        ('Adam', {'clip-text': {'betas': 1}}, "clip-text: unknown option of an encoder with Adam 'betas'"),
        ('Rprop', {'clip-text': {'weight_decay': 0.1}}, "clip-text: unknown option .* 'weight_decay'"),
        ('Adam', {'clip-vision': {'lr': -1}}, 'clip-vision: lr is -1: give a number, 0 or above'),
    ],
)
def test_what_does_not_exist_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        check_optimizer(name, options)


def test_the_loss_has_no_layers():
    check_optimizer('Adam', {LAYER_DECAY: 0.9})
    with pytest.raises(ValueError, match='loss_optimizer_options: unknown option of Adam .layer_wise_lr_decay.'):
        check_optimizer('Adam', {LAYER_DECAY: 0.9}, 'loss_optimizer')


def schedule(name: str | None, steps: int = 10, rate: float = 1.0, epochs: int = 1, **options: Any) -> list[float]:
    """The learning rate of every step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], rate)
    scheduler = make_scheduler(name, optimizer, SchedulerOptions(**options), batches=steps, epochs=epochs)
    found = []
    for _ in range(steps):
        found.append(round(optimizer.param_groups[0]['lr'], 6))
        optimizer.step()
        scheduler.step()
    return found


def test_schedules_have_their_shapes():
    assert schedule('linear') == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert schedule(None) == schedule('constant') == [1.0] * 10
    assert schedule('constant_with_warmup', num_warmup_steps=4) == [0, 0.25, 0.5, 0.75] + [1.0] * 6
    assert schedule('linear', num_warmup_steps=5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert schedule('cosine')[5] == 0.5 and schedule('cosine')[2] > 0.9
    assert schedule('polynomial', power=2.0, lr_end=0.0)[5] == 0.25
    assert schedule('polynomial', lr_end=0.5)[4] == 0.8
    assert schedule('cosine', num_cycles=1)[5] == 0.0  # down and up again
    assert schedule('cosine_with_restarts', num_cycles=2)[5] == 1.0
    assert schedule('linear', num_training_steps=5)[5:] == [0.0] * 5
    assert schedule('linear', epochs=4, scheduler_step='epoch')[:4] == [1.0, 0.75, 0.5, 0.25]


def test_a_polynomial_ends_below_any_learning_rate():
    assert schedule('polynomial', rate=1e-8) == [0.0] * 10  # as rounded here; transformers' own end is above it
    assert len(schedule('polynomial', num_warmup_steps=10)) == 10


def test_options_of_other_schedules_are_refused():
    with pytest.raises(ValueError, match='power is no option of .linear. but of polynomial'):
        check_scheduler('linear', SchedulerOptions(power=2))
    with pytest.raises(ValueError, match='num_cycles is no option of .constant. but of cosine and cosine_with'):
        check_scheduler('constant', SchedulerOptions(num_cycles=2))
    with pytest.raises(ValueError, match='whole number'):
        check_scheduler('cosine_with_restarts', SchedulerOptions(num_cycles=1.5))
    with pytest.raises(ValueError, match='without a scheduler'):
        check_scheduler(None, SchedulerOptions())
    with pytest.raises(ValueError, match='unknown scheduler .cosin.: did you mean cosine'):
        check_scheduler('cosin', None)
