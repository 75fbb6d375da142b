"""A training that was stopped and goes on is the training that was not stopped."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch

from finetuner.callback import BestModelCheckpoint, EarlyStopping, TrainingCheckpoint, WiSEFTCallback
from training.callbacks import Callback, training_checkpoint
from training.errors import CallbackError
from training.interruption import Interruption

from .conftest import assert_same


class Stop(Callback):
    """Stops after a batch; counts those it has seen, over all parts of the training."""

    def __init__(self, after=None):
        self.after, self.seen = after, 0

    def on_batch_end(self, state):
        self.seen += 1
        if state.global_step == self.after:
            state.stop = True

    def state_dict(self):
        return {'seen': self.seen, 'tensor': torch.tensor(self.seen)}

    def load_state_dict(self, values):
        assert values['tensor'] == values['seen']
        self.seen = values['seen']


SETTINGS = [
    {},
    {
        'optimizer': 'SGD',
        'optimizer_options': {'momentum': 0.9},
        'scheduler': 'cosine',
        'gradient_accumulation_steps': 2,
    },
    {
        'optimizer': 'AdamW',
        'scheduler': 'linear',
        'scheduler_options': {'num_warmup_steps': 1, 'scheduler_step': 'epoch'},
        'freeze': True,
    },
    {'optimizer': 'RMSprop', 'loss': 'ArcFaceLoss', 'loss_optimizer': 'Adagrad', 'max_grad_norm': 0.1},
]


# an epoch has 6 batches
@pytest.mark.parametrize(('settings', 'after'), [*zip(SETTINGS, [2, 10, 3, 12], strict=True), (SETTINGS[2], 6)])
def test_a_stopped_training_resumes_to_the_same_weights(make_training, settings, after):
    whole = make_training([TrainingCheckpoint(), Stop()], 'whole', **settings)
    whole.run()
    assert whole.state.global_step == 18

    first = make_training([TrainingCheckpoint(), Stop(after)], 'parts', **settings)
    first.run()
    assert first.state.global_step == after
    second = make_training([TrainingCheckpoint(), Stop()], 'parts', resume=True, **settings)
    torch.rand(5)  # what was drawn before makes no difference
    second.run()
    assert second.state.global_step == 18
    assert_same(whole.weights(), second.weights())
    assert second.state.history == whole.state.history
    assert second.state.metrics == whole.state.metrics
    own = next(member for member in second.callbacks.members if isinstance(member, Stop))
    assert own.seen == 18 // settings.get('gradient_accumulation_steps', 1)


@pytest.mark.parametrize('scheduler_step', ['batch', 'epoch'])
@pytest.mark.parametrize('after', [7, 5, 17])  # then within an epoch, and in the last batch of the first and of all
def test_a_signal_leaves_a_checkpoint_of_a_whole_batch(make_training, after, scheduler_step):
    class Signal(Callback):
        def on_batch_end(self, state):
            if state.global_step == after:
                signal.raise_signal(signal.SIGTERM)  # noticed when the next batch is done

        def on_epoch_end(self, state):
            ends.append(state.epoch)

        def state_dict(self):
            return {}

    ends = []
    settings = {'scheduler': 'linear', 'scheduler_options': {'scheduler_step': scheduler_step}}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        interruption = Interruption().install()
        first = make_training([TrainingCheckpoint(), Signal()], interruption=interruption, **settings)
        with pytest.raises(SystemExit) as ended:
            first.run()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert ended.value.code == 128 + signal.SIGTERM
    assert first.state.global_step == after + 1
    second = make_training([TrainingCheckpoint(), Signal()], resume=True, **settings)
    second.run()
    assert ends == [1, 2, 3], 'the epoch that was left is ended, once'
    whole = make_training([TrainingCheckpoint(), Signal()], 'whole', **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, 'raise_signal', lambda number: None)
        whole.run()
    assert_same(whole.weights(), second.weights())
    assert second.state.history == whole.state.history


@pytest.mark.parametrize('keep', [1, 2])
def test_a_process_that_ends_in_a_validation_has_lost_no_batch(make_training, keep):
    class Ending(Callback):
        """The process ends while epoch 2 is validated, once."""

        alive = True

        def on_batch_end(self, state):
            batches.append(state.global_step)

        def on_epoch_end(self, state):
            if state.epoch == 2 and Ending.alive:
                Ending.alive = False
                raise SystemExit(137)

    batches = []

    def given():
        return [TrainingCheckpoint(last_k_epochs=keep), Stop(), Ending()]

    settings = {'scheduler': 'linear', 'scheduler_options': {'scheduler_step': 'epoch'}}
    with pytest.raises(SystemExit):
        make_training(given(), 'parts', **settings).run()
    second = make_training(given(), 'parts', resume=True, **settings)
    second.run()
    assert batches == [*range(1, 19)], 'none is trained on twice'
    whole = make_training(given(), 'whole', **settings)
    whole.run()
    assert_same(whole.weights(), second.weights())
    assert second.state.history == whole.state.history


def test_the_state_of_callbacks_goes_on(make_training):
    """Nothing is better than epoch 1: with patience 3 the training ends after epoch 4, stopped in between or not."""
    given = [TrainingCheckpoint(), EarlyStopping(patience=3), BestModelCheckpoint(), WiSEFTCallback(0.5)]
    losses = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    whole = make_training([*given, Stop()], 'whole', val_losses=losses, epochs=6)
    whole.run()
    assert whole.state.epoch == 4
    first = make_training([*given, Stop(15)], 'parts', val_losses=losses, epochs=6)
    first.run()
    second = make_training([*given, Stop()], 'parts', val_losses=losses[2:], epochs=6, resume=True)
    second.run()
    assert second.state.epoch == 4
    assert_same(whole.weights(), second.weights())


def test_a_training_that_stopped_early_does_not_go_on(make_training):
    given = [TrainingCheckpoint(), EarlyStopping(patience=1)]
    first = make_training(given, val_losses=[1.0, 2.0])
    first.run()
    second = make_training(given, val_losses=[0.0], resume=True)
    assert second.run() == 0
    assert second.state.epoch == 2


@pytest.mark.parametrize('last_k_epochs', [1, 2])
def test_the_last_checkpoints_are_kept_without_pickles(make_training, last_k_epochs):
    training = make_training([TrainingCheckpoint(last_k_epochs)])
    training.run()
    folder = training.state.directory / 'checkpoints'
    assert [path.name for path in sorted(folder.iterdir())] == ['step-000000012', 'step-000000018'][-last_k_epochs:]
    assert {path.name for path in folder.glob('*/*')} == {'state.json', 'tensors.safetensors'}
    record = json.loads((folder / 'step-000000018' / 'state.json').read_text())
    assert record['config']['learning_rate'] == 0.05 and record['position']['epoch'] == 3


def test_an_earlier_training_is_not_overwritten_by_mistake(make_training):
    make_training([TrainingCheckpoint()], epochs=1).run()
    with pytest.raises(CallbackError, match='TrainingCheckpoint failed.*go on from there with resume=True, or give'):
        make_training([TrainingCheckpoint()], epochs=1).run()


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'learning_rate': 0.1}, 'is of another config: learning_rate was 0.05 and is 0.1'),
        ({'epochs': 5, 'optimizer': 'SGD'}, "epochs was 1 and is 5, optimizer was 'Adam' and is 'SGD'"),
        ({'seed_of_data': 1}, 'is of another training: data was'),
        ({'freeze_task': True}, 'is of another training: frozen weights was None'),
    ],
)
def test_another_training_is_refused_by_what_differs(make_training, changed, message):
    make_training([TrainingCheckpoint()], epochs=1).run()
    changed = {'epochs': 1} | changed
    if changed.pop('freeze_task', False):
        other = make_training([TrainingCheckpoint()], resume=True, **changed)
        other.encoder.first.requires_grad_(False)
    else:
        other = make_training([TrainingCheckpoint()], resume=True, **changed)
    with pytest.raises(CallbackError, match=message):
        other.run()


def test_what_makes_no_difference_may_change(make_training):
    make_training([TrainingCheckpoint()], epochs=1, run_name='a').run()
    make_training([TrainingCheckpoint()], epochs=1, run_name='b', num_workers=1, resume=True).run()


def test_other_frozen_weights_are_refused(make_training):
    make_training([TrainingCheckpoint()], epochs=1, freeze=True).run()
    other = make_training([TrainingCheckpoint()], epochs=1, freeze=True, resume=True)
    with torch.no_grad():
        other.encoder.first.weight += 1
    with pytest.raises(CallbackError, match='another training: frozen weights was'):
        other.run()


def test_a_damaged_checkpoint_is_named(make_training):
    training = make_training([TrainingCheckpoint()], epochs=1)
    training.run()
    (file,) = training.state.directory.glob('checkpoints/*/state.json')
    file.write_text(file.read_text()[:100])
    with pytest.raises(CallbackError, match='the checkpoint .*step-000000006 is damaged'):
        make_training([TrainingCheckpoint()], epochs=1, resume=True).run()


def test_a_figure_of_numpy_is_kept(make_training):
    class Figure(Callback):
        def on_batch_end(self, state):
            state.metrics['half'] = torch.tensor(0.5)

        def on_epoch_end(self, state):
            state.metrics['quarter'] = np.float32(0.25)

    training = make_training([TrainingCheckpoint(), Figure()], epochs=1)
    training.run()
    assert training.state.history[0]['half'] == 0.5 and training.state.history[0]['quarter'] == 0.25


@pytest.mark.parametrize('event', ['on_epoch_begin', 'on_batch_end'])
def test_a_signal_leaves_a_checkpoint_although_none_is_due(make_training, event):
    """Before the first batch of an epoch or after its last, where only a recovery keeps checkpoints."""

    class Signal(Callback):
        pass

    def ask(self, state):
        if state.global_step == 6:
            signal.raise_signal(signal.SIGTERM)

    setattr(Signal, event, ask)
    handler = signal.getsignal(signal.SIGTERM)
    checkpoint = training_checkpoint.TrainingCheckpoint(recovery=training_checkpoint.Recovery(3600), is_given=False)
    try:
        training = make_training([checkpoint, Signal()], interruption=Interruption().install())
        with pytest.raises(SystemExit):
            training.run()
    finally:
        signal.signal(signal.SIGTERM, handler)
    (left,) = training.state.directory.glob('checkpoints/*')
    assert left.name == ('step-000000006-open' if event == 'on_batch_end' else 'step-000000007-open')


def test_a_signal_that_comes_with_the_last_batch_is_not_put_off(make_training):
    class Signal(Callback):
        def on_batch_end(self, state):
            if state.global_step == 6:
                signal.raise_signal(signal.SIGTERM)

        def on_epoch_end(self, state):
            raise AssertionError('the validation is not waited for')

    handler = signal.getsignal(signal.SIGTERM)
    try:
        training = make_training([TrainingCheckpoint(), Signal()], interruption=Interruption().install())
        with pytest.raises(SystemExit):
            training.run()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert [path.name for path in training.state.directory.glob('checkpoints/*')] == ['step-000000006-open']


@pytest.mark.parametrize('event', ['on_batch_end', 'on_epoch_end'])
def test_a_signal_that_comes_again_does_not_cut_the_checkpoint_off(make_training, event):
    """torchrun sends one to the processes that are left when the first has ended."""

    class Signals(Callback):
        def on_exception(self, state, error):
            signal.raise_signal(signal.SIGTERM)

    def ask(self, state):
        if state.global_step == 6:
            interruption.requested = True  # as a signal between two instructions

    def make(folder, interruption=None):
        recovery = training_checkpoint.Recovery(3600)
        checkpoint = training_checkpoint.TrainingCheckpoint(resume=True, recovery=recovery, is_given=False)
        return make_training([checkpoint, Signals()], folder, interruption=interruption)

    setattr(Signals, event, ask)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        interruption = Interruption().install()
        training = make('parts', interruption)
        with pytest.raises(SystemExit):
            training.run()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert [path.name for path in training.state.directory.glob('checkpoints/*')] == ['step-000000006-open']
    resumed, whole = make('parts'), make('whole')
    for further in (resumed, whole):
        further.run()
    assert_same(whole.weights(), resumed.weights())
    assert resumed.state.history == whole.state.history
