"""BestModelCheckpoint, EarlyStopping and WiSEFTCallback: which weights there are in the end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetuner.callback import BestModelCheckpoint, EarlyStopping, WiSEFTCallback
from training.callbacks import Callback
from training.callbacks.monitoring import Monitor
from training.errors import CallbackError

from .conftest import assert_same


class Watch(Callback):
    """Keeps the weights of every epoch, and says what it is told of a figure of its own."""

    def __init__(self, figures=()):
        self.figures, self.weights, self.before = iter(figures), [], None

    def on_fit_begin(self, state):
        self.before = {name: tensor.clone() for name, tensor in state.task.state_dict().items()}

    def on_epoch_end(self, state):
        self.weights.append({name: tensor.clone() for name, tensor in state.task.state_dict().items()})
        if (figure := next(self.figures, None)) is not None:
            state.metrics['figure'] = figure


@pytest.mark.parametrize(
    ('options', 'val_losses', 'figures', 'best'),
    [
        ({}, [3.0, 1.0, 2.0], [], 2),
        ({}, [float('nan'), 3.0, 3.0], [], 2),
        ({'mode': 'max'}, [3.0, 1.0, 2.0], [], 1),
        ({'monitor': 'figure'}, None, [0.1, 0.3, 0.2], 2),
        ({'monitor': 'figure', 'mode': 'min'}, None, [0.2, 0.3, 0.1], 3),
        ({'monitor': 'train_loss', 'mode': 'min'}, None, [], 3),
    ],
)
def test_the_best_epoch_is_kept(make_training, options, val_losses, figures, best):
    watch = Watch(figures)
    training = make_training([BestModelCheckpoint(**options), watch], val_losses=val_losses)
    training.run()
    assert_same(training.weights(), watch.weights[best - 1])


def test_without_it_the_last_epoch_is_kept(make_training):
    watch = Watch()
    training = make_training([watch], val_losses=[1.0, 2.0, 3.0])
    training.run()
    assert_same(training.weights(), watch.weights[2])


def test_no_best_epoch_leaves_the_weights(make_training, caplog):
    training = make_training([BestModelCheckpoint(), watch := Watch()], val_losses=[float('nan')] * 3)
    training.run()
    assert_same(training.weights(), watch.weights[2])
    assert 'No epoch has a val_loss' in caplog.text


@pytest.mark.parametrize(
    ('options', 'losses', 'epochs'),
    [
        ({}, [5, 4, 3, 3, 3, 1], 5),
        ({'patience': 1}, [5, 4, 3, 3, 3, 1], 4),
        ({'min_delta': 1.5}, [5, 4, 3, 2, 1, 0], 6),
        ({'min_delta': 2}, [5, 4, 3.5, 2, 1, 0], 3),
        ({'baseline': 3}, [5, 4, 2, 3, 3, 3], 2),
        ({'baseline': 4.5}, [5, 4, 2, 3, 3, 3], 5),
        ({'mode': 'max'}, [5, 4, 3, 3, 3, 1], 3),
        ({'mode': 'max'}, [1, 2, 3, 4, 5, 6], 6),
        ({'patience': 3}, [float('nan')] * 6, 3),
    ],
)
def test_early_stopping(make_training, options, losses, epochs):
    training = make_training([EarlyStopping(**options)], val_losses=[float(loss) for loss in losses], epochs=6)
    training.run()
    assert training.state.epoch == epochs
    assert (training.state.stop_reason is not None) == (epochs < 6)


@pytest.mark.parametrize('alpha', [0.0, 0.3, 1.0])
def test_wise_ft_is_the_mean_of_before_and_after(make_training, alpha):
    training = make_training([WiSEFTCallback(alpha), watch := Watch()])
    training.run()
    for name, value in training.weights().items():
        before, after = watch.before[name], watch.weights[-1][name]
        expected = (1 - alpha) * before + alpha * after if value.is_floating_point() else after
        assert torch.allclose(value, expected, atol=1e-7), name
        if alpha in (0, 1) and value.is_floating_point():
            assert torch.equal(value, before if alpha == 0 else after)
    assert not list(training.state.directory.glob('*.safetensors'))


def test_wise_ft_after_the_best_epoch(make_training):
    given = [WiSEFTCallback(0.5), watch := Watch(), BestModelCheckpoint()]
    training = make_training(given, val_losses=[1.0, 2.0, 3.0])
    training.run()
    name = 'encoders.model.second.weight'
    expected = (watch.before[name] + watch.weights[0][name]) / 2
    assert torch.allclose(training.weights()[name], expected, atol=1e-7)


class Adapted(nn.Module):
    """A low-rank adapter on a frozen layer, with the names that peft gives."""

    def __init__(self, layer):
        super().__init__()
        self.base = layer.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(2, layer.in_features))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, 2))

    def forward(self, inputs):
        return self.base(inputs) + inputs @ (self.lora_B @ self.lora_A).T


def test_wise_ft_of_adapters_is_that_of_the_merged_weights(make_training):
    training = make_training([WiSEFTCallback(0.25), watch := Watch()])
    training.encoder.first = adapted = Adapted(training.encoder.first)
    from training.loop import set_up_optimizers
    from training.processes import make_accelerator
    from training.samplers import RandomSampler

    set_up_optimizers(training.state, RandomSampler(48, 8), make_accelerator(training.state.config))
    training.run()
    last = watch.weights[-1]
    delta = last['encoders.model.first.lora_B'] @ last['encoders.model.first.lora_A']
    assert delta.abs().max() > 0.01
    assert torch.allclose(adapted.lora_B @ adapted.lora_A, 0.25 * delta, atol=1e-6)


@pytest.mark.parametrize('callback', [BestModelCheckpoint, EarlyStopping])
def test_a_figure_that_is_not_there_ends_the_run_by_name(make_training, callback):
    message = (
        f"the callback {callback.__name__} failed in on_epoch_end: monitor='figure' is not there: "
        'this run has train_loss, learning_rate, val_loss'
    )
    with pytest.raises(CallbackError, match=message):
        make_training([callback(monitor='figure'), Watch()]).run()


def test_a_figure_may_be_told_without_its_prefix():
    metrics = {'clip-text-to-clip-vision_recall_at_k': 0.5, 'a_hit_at_k': 0.1, 'b_hit_at_k': 0.2}
    assert Monitor('recall_at_k').value(metrics) == 0.5
    with pytest.raises(ValueError, match='may be any of a_hit_at_k, b_hit_at_k'):
        Monitor('hit_at_k').value(metrics)
