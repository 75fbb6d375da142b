"""The process that works on one run: `python -m training.worker RUN_ID LEASE`. What it prints is the run's log.

Without a lease it takes the run itself. Started by torchrun, the first process speaks for all.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from finetuner.excepts import ArtifactError, DataError, ParameterError, UnavailableError
from registry import Registry, RunRecord
from registry.names import new_id
from registry.queue import SCHEDULING
from registry.tuning_tasks import TASK
from training.errors import is_passing, passing_reason, persistently, reason
from training.finishing import finish
from training.heartbeat import Heartbeat
from training.interruption import Interruption
from training.launchers.attempt import log_path
from training.launchers.log_sender import LogSender
from training.memory import Footprint
from training.run_folder import remove_training

if TYPE_CHECKING:
    from training.config import FitConfig
    from training.pipeline import FitResult
    from training.progress import Progress

logger = logging.getLogger(__name__)

OF_THE_CALLER = (DataError, ParameterError, ArtifactError)
TAKEN = 3
"""The exit code of a worker whose run is at work elsewhere or has ended."""
PASSING = 75
"""The exit code of a worker that failed for a reason which may pass: another attempt may succeed."""
CHECKPOINT_SECONDS = 60.0
"""Between two checkpoints at least, default of `FINETUNER_CHECKPOINT_SECONDS`."""


def main(run_id: str, lease: str | None = None) -> int:
    """Do the work, store what came of it or why nothing did. Returns the exit code."""
    is_first = os.environ.get('RANK', '0') == '0'
    level = logging.INFO if is_first else logging.WARNING
    logging.basicConfig(level=level, format='%(asctime)s %(message)s', datefmt='%H:%M:%S', stream=sys.stdout)
    for noisy in ('alembic', 'httpx', 'botocore', 'aiobotocore'):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    interruption = Interruption().install()  # scratch files are removed, and a checkpoint is whole
    try:
        opened = persistently(Registry.open)
    except (UnavailableError, SQLAlchemyError, ValueError, OSError):  # what it says names hosts and users
        logger.error('The registry cannot be opened: the log of the service says why')
        return PASSING
    with opened as registry, ExitStack() as helpers:
        heartbeat = Heartbeat(registry, run_id, lease or new_id(), f'{socket.gethostname()}:{os.getpid()}')
        if lease is None:
            begun = registry.start_run(run_id, heartbeat.worker, heartbeat.lease)
        else:
            begun = not is_first or persistently(
                lambda: registry.heartbeat(run_id, None, heartbeat.lease, heartbeat.worker)
            )
        if not begun:
            logger.debug('The run %s is at work elsewhere or has ended', run_id)  # not in the log of the other worker
            return TAKEN
        if is_first:
            log = LogSender(registry, run_id, heartbeat.lease, log_path(registry.home, heartbeat.lease))
            helpers.enter_context(log.sending())
            helpers.enter_context(heartbeat.beating())
        try:
            work(registry, registry.get_run_by_id(run_id), heartbeat, interruption, is_first)
        except Exception as error:
            if is_passing(error):
                logger.error('Failed for a reason that may pass: %s', passing_reason(error))
                return PASSING
            why = reason(error, Footprint.read(registry.run_directory(run_id)))
            # where the data or the arguments are at fault, a traceback through our code helps nobody
            logger.error('Failed: %s', why, exc_info=not isinstance(error, OF_THE_CALLER))
            if is_first:
                persistently(log.send)  # before anyone hears of the end
            persistently(lambda: registry.fail_run(run_id, why, heartbeat.lease))
            return 1
        if is_first:
            logger.info('Finished')
            log.send()
    return 0


def work(
    registry: Registry, run: RunRecord, heartbeat: Heartbeat, interruption: Interruption, is_first: bool = True
) -> None:
    """Fine-tune as the run's config says, on the data sets as they were when it was created; or do the task that it
    carries.

    What an earlier worker of the run left as a checkpoint, here or in the object store, is where this one begins.
    """
    logger.info('Preparing the run %s', run.name)
    seconds = float(os.environ.get('FINETUNER_CHECKPOINT_SECONDS') or CHECKPOINT_SECONDS)
    if (task_id := run.config.get(TASK)) is not None:
        from training.iterations.carrying import carry

        carry(registry, run, task_id, heartbeat, interruption, seconds)
        return
    from registry.shards import DatasetReader
    from training.callbacks.training_checkpoint import Recovery
    from training.pipeline import run_fit
    from training.processes import ending_together
    from training.secrets import restore_secrets
    from training.shared_checkpoints import CheckpointSharer, fetch_checkpoint, shares_checkpoints

    datasets = registry.get_run_datasets(run.id)

    def open_data(name: str, folder: Path) -> DatasetReader:
        return DatasetReader(registry.fetch_shards(datasets[name].shards, folder), name, allow_links=False)

    config = read_config(run)
    artifact = None
    if config.model_artifact is not None:
        artifact = registry.artifact_file(registry.get_artifact(run.account_id, config.model_artifact))
    directory = registry.run_directory(run.id)
    restore_secrets(config, directory)
    with ExitStack() as helpers:
        helpers.enter_context(ending_together(interruption))
        saved = {}
        if is_first and shares_checkpoints(registry):
            try:
                fetch_checkpoint(registry, run.id, directory)
            except DataError as error:  # every other attempt would find the same
                logger.warning('The shared checkpoint cannot be used: %s: going on without it', error)
            sharer = helpers.enter_context(CheckpointSharer(registry, run.id, heartbeat.lease, directory))
            saved = {'saved': sharer.offer}
        recovery = Recovery(seconds, measured=lambda footprint: footprint.write(directory), **saved)
        result = run_fit(
            config,
            open_data,
            directory,
            heartbeat.report if is_first else None,
            artifact=artifact,
            resume=True,
            interruption=interruption,
            recovery=recovery,
        )
    if not is_first:
        return
    heartbeat.report(last_progress(config, result))
    persistently(heartbeat.beat)
    finish(registry, run.id, result.artifact, result.metrics, result.examples, heartbeat.lease)
    result.artifact.unlink()  # the registry has it now
    remove_training(directory)
    logger.info('Fine-tuning took %.1f seconds', sum(result.seconds.values()))


def read_config(run: RunRecord) -> FitConfig:
    """What the run is to do, without how it is to be worked on. Which GPU it gets is the launcher's choice."""
    from training.config import FitConfig

    arguments = {name: value for name, value in run.config.items() if name not in SCHEDULING}
    if str(arguments.get('device')).startswith('cuda:'):
        arguments['device'] = 'cuda'
    return FitConfig.from_arguments(**arguments | {'run_name': run.name})


def last_progress(config: FitConfig, result: FitResult) -> Progress:
    """What a run tells of itself when it is finished: the last that its stages told is one of them."""
    from training.progress import Progress

    epochs = len(result.history)
    loss = result.history[-1].get('train_loss') if result.history else None
    return Progress('Finished', epochs, epochs, epoch=epochs, epochs=config.epochs, loss=loss)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
