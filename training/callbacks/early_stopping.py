"""EarlyStopping: the training ends when it brings nothing more."""

from __future__ import annotations

from typing import Any

from training.callbacks.base import Callback
from training.callbacks.monitoring import Mode, Monitor
from training.state import TrainingState


class EarlyStopping(Callback):
    """Ends the training after `patience` epochs in a row that are no better.

    :param monitor: the figure that tells, see :class:`Monitor`.
    :param min_delta: by how much an epoch must be better than the best one so far.
    :param baseline: what it must be better than, too.
    :raises ValueError: at the end of an epoch, if there is no such figure.
    """

    def __init__(
        self,
        monitor: str = 'val_loss',
        mode: Mode = 'auto',
        patience: int = 2,
        min_delta: float = 0.0,
        baseline: float | None = None,
    ):
        self.monitor = Monitor(monitor, mode, min_delta)
        self.patience, self.baseline = patience, baseline
        self.best: float | None = None
        self.waited = 0

    def on_resume(self, state: TrainingState) -> None:
        self._stop(state)

    def on_epoch_end(self, state: TrainingState) -> None:
        value = self.monitor.value(state.metrics)
        self.waited += 1
        if self.monitor.is_better(value, self.best):
            self.best = value
            if self.monitor.is_better(value, self.baseline):
                self.waited = 0
        self._stop(state)

    def _stop(self, state: TrainingState) -> None:
        if self.waited >= self.patience:
            state.stop = True
            than = 'the best' if self.best is not None else 'a number'
            state.stop_reason = f'EarlyStopping: {self.monitor.figure} was no better than {than} {self.waited} times'

    def state_dict(self) -> dict[str, Any]:
        return {'best': self.best, 'waited': self.waited}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.best, self.waited = values['best'], values['waited']
