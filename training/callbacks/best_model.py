"""BestModelCheckpoint: in the end the weights are those of the best epoch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from training.callbacks.base import Callback
from training.callbacks.monitoring import Mode, Monitor
from training.checkpoint import read_tensors, restore_weights, weights, write_tensors
from training.run_folder import BEST
from training.state import TrainingState

logger = logging.getLogger(__name__)


class BestModelCheckpoint(Callback):
    """Writes the weights of the best epoch so far to `best.safetensors` in the folder of the run.

    :param monitor: the figure that tells which is the best, see :class:`Monitor`.
    :raises ValueError: at the end of an epoch, if there is no such figure.
    """

    FILE = BEST

    def __init__(self, monitor: str = 'val_loss', mode: Mode = 'auto'):
        self.monitor = Monitor(monitor, mode)
        self.best: float | None = None
        self.epoch = 0

    def on_epoch_end(self, state: TrainingState) -> None:
        value = self.monitor.value(state.metrics)
        if not self.monitor.is_better(value, self.best):
            return
        self.best, self.epoch = value, state.epoch
        write_tensors(self._file(state), weights(state.task), {'epoch': str(state.epoch), 'value': repr(value)})

    def on_fit_end(self, state: TrainingState) -> None:
        if self.best is None:
            logger.warning('No epoch has a %s: the weights stay as they are', self.monitor.figure)
            return
        if self.epoch != state.epoch or state.step != state.steps_per_epoch:
            restore_weights(state.task, read_tensors(self._file(state)))
        logger.info('The best epoch is %d: %s is %.5f', self.epoch, self.monitor.figure, self.best)

    def state_dict(self) -> dict[str, Any]:
        return {'best': self.best, 'epoch': self.epoch}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.best, self.epoch = values['best'], values['epoch']

    def _file(self, state: TrainingState) -> Path:
        return state.directory / self.FILE
