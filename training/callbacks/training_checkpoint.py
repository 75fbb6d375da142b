"""TrainingCheckpoint: a training that was stopped goes on where it was."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from training.callbacks.base import Callback
from training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from training.state import TrainingState

logger = logging.getLogger(__name__)


class TrainingCheckpoint(Callback):
    """Writes the whole state at the end of every epoch, and after the batch where the training is stopped.

    :param last_k_epochs: how many checkpoints are kept, the latest.
    :param resume: go on from the latest checkpoint in the folder of the run, if there is one.
    :param others: the callbacks whose state is kept, too.
    :raises ValueError: at the beginning, if there is a checkpoint and `resume` is False, or if the checkpoint is one of
        another config or other data; the message says which.
    """

    FOLDER = 'checkpoints'

    def __init__(self, last_k_epochs: int = 1, *, resume: bool = False, others: Sequence[Callback] = ()):
        self.last_k_epochs, self.resume, self.others = last_k_epochs, resume, others

    def on_fit_begin(self, state: TrainingState) -> None:
        folder = state.directory / self.FOLDER
        found = find_checkpoint(folder)
        if found is None:
            return
        if not self.resume:
            raise ValueError(
                f'{folder} holds a checkpoint of an earlier training: go on from there with resume=True, or give '
                'another directory'
            )
        load_checkpoint(found, state, self.others)
        logger.info('Going on from step %d of epoch %d (%s)', state.step, state.epoch, found)
        for callback in self.others:
            callback.on_resume(state)

    def on_batch_end(self, state: TrainingState) -> None:
        if state.stop:  # of the last batch too: the process may end before the epoch has
            self._save(state, epoch_ended=False)

    def on_epoch_end(self, state: TrainingState) -> None:
        self._save(state, epoch_ended=True)

    def _save(self, state: TrainingState, *, epoch_ended: bool) -> None:
        if state.is_main:
            folder = state.directory / self.FOLDER
            path = save_checkpoint(state, self.others, folder, keep=self.last_k_epochs, epoch_ended=epoch_ended)
            logger.info('Checkpoint %s of epoch %d, step %d', path, state.epoch, state.step)
