"""What WandBLogger and MLFlowLogger have in common."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

from training.callbacks.base import Callback
from training.state import TrainingState

logger = logging.getLogger(__name__)

PLACES = {'train_loss': 'train/loss', 'val_loss': 'val/loss', 'learning_rate': 'learning_rate'}


class Logger(Callback):
    """Sends every figure to a tracker when it is new: `train/loss`, `val/loss`, `learning_rate`, `metrics/<name>`.

    A tracker that cannot be reached at the beginning fails the run; later on it is no reason to lose a training.
    """

    def __init__(self) -> None:
        self.run_id: str | None = None  # of a tracker's run that goes on after a resume
        self._open = False
        self._sent: dict[str, float] = {}

    @abstractmethod
    def open(self, state: TrainingState, config: dict[str, Any]) -> None:
        """Begin a run of the tracker, or go on with `run_id`; sets `run_id`.

        :param config: that of the training, plain values.
        """

    @abstractmethod
    def send(self, figures: dict[str, float], step: int) -> None:
        """Send figures as of a batch of the training."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """End the run of the tracker."""

    def on_fit_begin(self, state: TrainingState) -> None:
        with state.report.stage(f'Opening {self.name}'):  # its import alone takes seconds
            self.open(state, state.config.model_dump(mode='json'))
        self._open = True
        self._log(state)

    def on_batch_end(self, state: TrainingState) -> None:
        self._log(state)

    def on_epoch_end(self, state: TrainingState) -> None:
        self._log(state)

    def on_fit_end(self, state: TrainingState) -> None:
        self._log(state)
        self._close(failed=False)

    def on_exception(self, state: TrainingState, error: BaseException) -> None:
        self._close(failed=True)

    def state_dict(self) -> dict[str, Any]:
        return {'run_id': self.run_id}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.run_id = values['run_id']

    def _log(self, state: TrainingState) -> None:
        new = {name: value for name, value in state.metrics.items() if self._sent.get(name) != value}
        if not new or not self._open:
            return
        self._sent |= new
        try:
            self.send({PLACES.get(name, f'metrics/{name}'): value for name, value in new.items()}, state.global_step)
        except Exception:
            logger.warning('%s: the figures of step %d are lost', self.name, state.global_step, exc_info=True)

    def _close(self, failed: bool) -> None:
        if self._open:
            self._open = False
            try:
                self.close(failed)
            except Exception:
                logger.warning('%s could not end its run', self.name, exc_info=True)
