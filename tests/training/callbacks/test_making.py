"""How callbacks work together."""

from __future__ import annotations

import errno
import os

import pytest

from finetuner.callback import EarlyStopping, TrainingCheckpoint
from training.callbacks import Callback
from training.errors import CallbackError, is_passing, passing_reason


class Recorder(Callback):
    def __init__(self, events):
        self.events = events

    def __getattribute__(self, name):
        if name.startswith('on_'):
            return lambda state, *rest: self.events.append((name, state.epoch, state.step))
        return super().__getattribute__(name)


def test_events_come_in_their_order(make_training):
    events = []
    make_training([Recorder(events)], epochs=2, batch_size=24).run()
    assert events == [
        ('on_fit_begin', 0, 0),
        ('on_epoch_begin', 1, 0),
        ('on_batch_end', 1, 1),
        ('on_batch_end', 1, 2),
        ('on_epoch_end', 1, 2),
        ('on_epoch_begin', 2, 0),
        ('on_batch_end', 2, 1),
        ('on_batch_end', 2, 2),
        ('on_epoch_end', 2, 2),
        ('on_fit_end', 2, 2),
    ]


def test_a_callback_may_stop_the_training(make_training):
    class Stop(Callback):
        def on_batch_end(self, state):
            state.stop = state.global_step == 4

    events = []
    training = make_training([Stop(), Recorder(events)])
    training.run()
    assert training.state.global_step == 4
    assert events[-1] == ('on_fit_end', 1, 4)
    assert not any(event[0] == 'on_epoch_end' for event in events)  # the epoch was broken off


@pytest.mark.parametrize('event', ['on_fit_begin', 'on_epoch_begin', 'on_batch_end', 'on_epoch_end', 'on_fit_end'])
def test_an_error_in_a_callback_ends_the_run_by_its_name(make_training, event):
    def fail(self, state):
        raise KeyError('figure')

    events = []
    faulty = type('Faulty', (Callback,), {event: fail})()
    with pytest.raises(CallbackError, match=f"the callback Faulty failed in {event}: KeyError: 'figure'"):
        make_training([faulty, Recorder(events)]).run()
    assert events[-1][0] == 'on_exception'


def test_a_fault_of_the_machine_in_a_callback_may_pass(make_training):
    class Faulty(Callback):
        def on_batch_end(self, state):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CallbackError) as caught:
        make_training([Faulty()]).run()
    assert is_passing(caught.value) and passing_reason(caught.value) == 'No space left on device'


def test_an_error_in_on_exception_hides_nothing(make_training, caplog):
    class Faulty(Callback):
        def on_batch_end(self, state):
            raise ValueError('the first')

        def on_exception(self, state, error):
            assert 'the first' in str(error)
            raise ValueError('the second')

    with pytest.raises(CallbackError, match='the callback Faulty failed in on_batch_end: the first'):
        make_training([Faulty()]).run()
    assert 'the second' in caplog.text


def test_the_checkpoint_keeps_what_others_decided(make_training):
    """Whatever the order in which they are given."""
    training = make_training([TrainingCheckpoint(), EarlyStopping(patience=1)], val_losses=[1.0, 2.0])
    assert [member.name for member in training.callbacks.members] == ['EarlyStopping', 'TrainingCheckpoint']
