"""TrainingCheckpoint: a training that was stopped goes on where it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.callbacks.base import Callback
from training.checkpoint import check_config, find_checkpoint, load_checkpoint, save_checkpoint
from training.interruption import Interrupted
from training.memory import Footprint
from training.run_folder import CHECKPOINTS
from training.state import TrainingState

if TYPE_CHECKING:
    from training.config import FitConfig

logger = logging.getLogger(__name__)

MAX_COST = 0.05
"""Of the time, that checkpoints for the sake of recovery may take."""


@dataclass(frozen=True)
class Recovery:
    """How a training that nobody watches can go on after a crash, whatever its callbacks.

    :param seconds: between two checkpoints, at least; more where one takes long.
    :param saved: is called with the folder of each checkpoint, which may be gone after the next.
    :param measured: is called with what the training will take.
    """

    seconds: float
    saved: Callable[[Path], None] = lambda path: None
    measured: Callable[[Footprint], None] = lambda footprint: None


class TrainingCheckpoint(Callback):
    """Writes the whole state before and after the validation of every epoch, and where the training is stopped.

    :param last_k_epochs: how many checkpoints are kept, the latest.
    :param resume: go on from the latest checkpoint in the folder of the run, if there is one.
    :param others: the callbacks whose state is kept, too.
    :param recovery: how else it is to be written.
    :param is_given: False if it is there for the sake of `recovery` alone: epochs are no reason to write then.
    :raises ValueError: at the beginning, if there is a checkpoint and `resume` is False, or if the checkpoint is one of
        another config or other data; the message says which.
    """

    FOLDER = CHECKPOINTS

    def __init__(
        self,
        last_k_epochs: int = 1,
        *,
        resume: bool = False,
        others: Sequence[Callback] = (),
        recovery: Recovery | None = None,
        is_given: bool = True,
    ):
        self.last_k_epochs, self.resume, self.others = last_k_epochs, resume, others
        self._recovery, self._is_given = recovery, is_given
        self._written, self._cost = time.monotonic(), 0.0
        self._step = -1  # of the latest checkpoint

    @classmethod
    def check(cls, directory: Path, config: FitConfig, resume: bool) -> dict[str, Any]:
        """What the checkpoint in a folder of a run depends on beside its config; empty if there is none.

        :raises ValueError: as at the beginning of the training, as far as the config tells.
        """
        found = cls._find(directory, resume)
        return {} if found is None else check_config(found, config)

    def on_fit_begin(self, state: TrainingState) -> None:
        found = self._find(state.directory, self.resume)
        if found is None:
            return
        load_checkpoint(found, state, self.others)
        self._step = state.global_step
        logger.info('Going on from step %d of epoch %d (%s)', state.step, state.epoch, found)
        for callback in self.others:
            callback.on_resume(state)

    @classmethod
    def _find(cls, directory: Path, resume: bool) -> Path | None:
        folder = directory / cls.FOLDER
        found = find_checkpoint(folder)
        if found is not None and not resume:
            raise ValueError(
                f'{folder} holds a checkpoint of an earlier training: go on from there with resume=True, or give '
                'another directory'
            )
        return found

    def on_batch_end(self, state: TrainingState) -> None:
        # of the last batch too: the process may end before the epoch has, in a validation that takes long
        if state.stop or self._is_due() or (self._is_given and state.step == state.steps_per_epoch):
            self._save(state, epoch_ended=False)

    def on_epoch_end(self, state: TrainingState) -> None:
        if self._is_given or self._is_due():
            self._save(state, epoch_ended=True)

    def on_exception(self, state: TrainingState, error: BaseException) -> None:
        if isinstance(error, Interrupted) and self._step != state.global_step:
            self._save(state, epoch_ended=False)

    def _is_due(self) -> bool:
        if self._recovery is None:
            return False
        return time.monotonic() - self._written >= max(self._recovery.seconds, self._cost / MAX_COST)

    def _save(self, state: TrainingState, *, epoch_ended: bool) -> None:
        if not state.is_main:
            return
        start = time.monotonic()
        folder = state.directory / self.FOLDER
        path = save_checkpoint(state, self.others, folder, keep=self.last_k_epochs, epoch_ended=epoch_ended)
        logger.info('Checkpoint %s of epoch %d, step %d', path, state.epoch, state.step)
        if self._recovery is not None:
            self._recovery.saved(path)
        self._written, self._step = time.monotonic(), state.global_step
        self._cost = self._written - start
