"""One batch: whatever way the embeddings take, the loss and the gradients are those of the plain computation."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from finetuner.inference.encoder import Encoder
from training.config import FitConfig
from training.data import Column, Examples, Store
from training.embed import FeatureEmbedder
from training.losses.objective import Objective
from training.processes import make_accelerator
from training.rows import Rows, RowsWriter
from training.step import Step
from training.task import Task


class Preprocessor:
    modality, digest = 'tensor', 'none'

    def features(self, contents):
        return list(contents)

    def collate(self, rows):
        return {'tensor': np.stack(rows)}


class TinyEncoder(Encoder):
    modality = 'tensor'

    def __init__(self, dropout=0.0):
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(6, 8), nn.Dropout(dropout), nn.Linear(8, 4)
        self.calls = []

    preprocessor = property(lambda self: Preprocessor())
    input_names = property(lambda self: ['tensor'])
    backbone_dim = property(lambda self: 4)

    def pooled(self, tensor):
        self.calls.append(len(tensor))
        return self.second(self.drop(torch.tanh(self.first(tensor))))

    def layer_groups(self):
        return [self.first, self.second]

    def save(self, directory):
        raise AssertionError('it is not saved')


class Together(Objective):
    """Every embedding meets every other, so that a wrong order or a missing item shows."""

    shape = 'pairs'

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, columns, labels=None, scores=None, keys=None):
        similar = self.scale * columns[0] @ columns[-1].T
        return nn.functional.cross_entropy(similar, torch.arange(len(similar)))


@pytest.fixture
def pairs(tmp_path):
    """40 pairs; the first item of pairs 0 to 3 is the same."""
    random = np.random.default_rng(0)
    items = random.normal(size=(80, 6)).astype(np.float32)
    items[[2, 4, 6]] = items[0]
    with RowsWriter(tmp_path / 'items', np.float32) as writer:
        writer.append(list(items))
    keys = np.arange(80, dtype=np.uint64)
    keys[[2, 4, 6]] = 0
    store = Store(Rows(tmp_path / 'items'), keys)
    columns = (Column('model', store, 0, 2), Column('model', store, 1, 2))
    return Examples('pairs', columns, None, [], None, None)


def make_step(examples, budget=None, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    encoder = TinyEncoder(dropout)
    task = Task({'model': encoder}, Together())
    embedders = {'model': FeatureEmbedder(encoder, examples.columns[0].store.features)}
    accelerator = make_accelerator(FitConfig(model='tiny', train_data='pairs', device='cpu'))
    return Step(task, examples, embedders, accelerator, {'model': budget})


def gradients(step):
    return {name: parameter.grad.clone() for name, parameter in step.task.named_parameters()}


def plain(step, rows):
    """What a loop without any of this would compute."""
    features = step.examples.columns[0].store.features
    anchors = torch.stack([torch.from_numpy(np.array(features[2 * row])) for row in rows])
    positives = torch.stack([torch.from_numpy(np.array(features[2 * row + 1])) for row in rows])
    encoder = step.task.encoders['model']
    loss = step.task.objective([encoder(tensor=anchors), encoder(tensor=positives)])
    loss.backward()
    return loss.detach(), gradients(step)


def assert_equal(found, expected, tolerance=1e-6):
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('budget', [None, 5, 1, 1000])
def test_the_gradients_are_those_of_the_plain_computation(pairs, budget):
    rows = np.array([3, 0, 17, 1, 30, 9])
    step = make_step(pairs, budget)
    loss = step.backward(rows)
    expected_loss, expected = plain(make_step(pairs), rows)
    torch.testing.assert_close(loss, expected_loss)
    assert_equal(gradients(step), expected)


def test_equal_items_are_encoded_once(pairs):
    step = make_step(pairs)
    step.backward(np.array([0, 1, 2, 3]))
    assert step.task.encoders['model'].calls == [5]  # one anchor, four positives


def test_a_budget_bounds_what_is_encoded_at_once(pairs):
    step = make_step(pairs, budget=4)
    step.backward(np.arange(10, 20))
    calls = step.task.encoders['model'].calls
    assert max(calls) <= 4
    assert sum(calls) == 20 + 16  # the last four keep their graph, the others are encoded again


def test_dropout_is_the_same_the_second_time(pairs):
    """With one chunk for every item, the embeddings that the loss saw are those that the gradients go through."""
    step = make_step(pairs, budget=1, dropout=0.5)
    torch.manual_seed(3)
    step.backward(np.arange(8))
    found = gradients(step)
    direct = make_step(pairs, dropout=0.5)
    torch.manual_seed(3)
    encoder, features = direct.task.encoders['model'], pairs.columns[0].store.features
    embedded = {}
    for row in range(8):  # the order in which the chunks are encoded
        for item in (2 * row, 2 * row + 1):
            if item not in (2, 4, 6):
                embedded[item] = encoder(tensor=torch.from_numpy(np.array(features[item]))[None])[0]
    embedded |= dict.fromkeys((2, 4, 6), embedded[0])
    columns = [torch.stack([embedded[2 * row + side] for row in range(8)]) for side in (0, 1)]
    direct.task.objective(columns).backward()
    assert_equal(found, gradients(direct))


def test_the_loss_alone_leaves_no_gradients(pairs):
    rows = np.array([3, 0, 17])
    step = make_step(pairs)
    torch.testing.assert_close(step.loss(rows), plain(make_step(pairs), rows)[0])
    assert all(parameter.grad is None for parameter in step.task.parameters())


def test_the_loss_is_the_same_in_chunks_of_unequal_costs(pairs, monkeypatch):
    rows = np.array([3, 0, 17, 1, 30, 9])
    step = make_step(pairs, budget=3)
    monkeypatch.setattr(step.embedders['model'], 'costs', lambda items: 1 + items * 7 % 3)
    torch.testing.assert_close(step.loss(rows), plain(make_step(pairs), rows)[0])


def test_weights_of_batches_add_up(pairs):
    step = make_step(pairs)
    step.backward(np.arange(5), weight=0.25)
    step.backward(np.arange(5), weight=0.75)
    assert_equal(gradients(step), plain(make_step(pairs), np.arange(5))[1])


def test_scores_and_labels_reach_the_objective(pairs):
    class Seen(Objective):
        shape = 'scored pairs'

        def forward(self, columns, labels=None, scores=None, keys=None):
            self.seen = labels, scores, keys
            return columns[0].sum()

    examples = dataclasses.replace(
        pairs, labels=np.arange(40, dtype=np.int32), scores=np.linspace(0, 1, 40).astype(np.float32)
    )
    step = make_step(examples)
    step.task.objective = Seen()
    step.backward(np.array([1, 39]))
    labels, scores, keys = step.task.objective.seen
    assert labels.tolist() == [1, 39]
    assert scores.tolist() == pytest.approx([1 / 39, 1])
    assert [key.tolist() for key in keys] == [[0, 78], [3, 79]]
