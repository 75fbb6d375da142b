"""The process that works on one run: `python -m training.worker RUN_ID`. What it prints is the run's log."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuner.excepts import RegistryError
from registry import Registry, RunRecord
from registry.records import FINISHED
from training.interruption import Interruption

if TYPE_CHECKING:
    from training.progress import Progress

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 2
TAKEN = 3
"""The exit code of a worker whose run is at work elsewhere or has ended."""


def main(run_id: str) -> int:
    """Take the run, do the work, store what came of it or why nothing did. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s', datefmt='%H:%M:%S', stream=sys.stdout)
    for noisy in ('alembic', 'httpx'):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    interruption = Interruption().install()  # scratch files are removed, and a checkpoint is whole
    with Registry.open() as registry:
        if not registry.start_run(run_id, f'{socket.gethostname()}:{os.getpid()}'):
            logger.debug('The run %s is at work elsewhere or has ended', run_id)  # not in the log of the other worker
            return TAKEN
        try:
            with Heartbeat(registry, run_id).beating() as report:
                work(registry, registry.get_run_by_id(run_id), report, interruption)
        except Exception as error:
            logger.exception('Failed')
            with suppress(RegistryError):  # the run was deleted
                registry.fail_run(run_id, reason(error))
            return 1
    logger.info('Finished')
    return 0


def work(registry: Registry, run: RunRecord, report: Any, interruption: Interruption) -> None:
    """Fine-tune as the run's config says, on the data sets as they were when it was created.

    What an earlier worker of the run left as a checkpoint is where this one begins.
    """
    logger.info('Preparing the run %s', run.name)
    from registry.shards import DatasetReader
    from training.config import FitConfig
    from training.pipeline import run_fit
    from training.secrets import forget_secrets, restore_secrets

    datasets = registry.get_run_datasets(run.id)

    def open_data(name: str, folder: Path) -> DatasetReader:
        return DatasetReader(registry.fetch_shards(datasets[name].shards, folder), name, allow_links=False)

    config = FitConfig.from_arguments(**run.config | {'run_name': run.name})
    artifact = None
    if config.model_artifact is not None:
        artifact = registry.artifact_file(registry.get_artifact(run.account_id, config.model_artifact))
    directory = registry.run_directory(run.id)
    restore_secrets(config, directory)
    result = run_fit(config, open_data, directory, report, artifact=artifact, resume=True, interruption=interruption)
    registry.finish_run(run.id, result.artifact, result.metrics, result.examples)
    result.artifact.unlink()  # the registry has it now
    forget_secrets(directory)
    for leftover in ('checkpoints', 'best.safetensors'):  # the run cannot go on any more
        path = directory / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    logger.info('Fine-tuning took %.1f seconds', sum(result.seconds.values()))


class Heartbeat:
    """Tells the registry every few seconds that this process lives, and how far it is."""

    def __init__(self, registry: Registry, run_id: str):
        self._registry, self._run_id = registry, run_id
        self._progress: dict[str, Any] | None = None
        self._stop = threading.Event()

    @contextmanager
    def beating(self) -> Iterator[Any]:
        """Beats within; the value takes progress."""
        thread = threading.Thread(target=self._beat, name='heartbeat', daemon=True)
        thread.start()
        try:
            yield self._report
        finally:
            self._stop.set()
            thread.join()

    def _report(self, progress: Progress) -> None:
        self._progress = dataclasses.asdict(progress)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                if self._registry.heartbeat(self._run_id, self._progress):
                    continue
                ended = self._registry.get_run_by_id(self._run_id).status != FINISHED
            except RegistryError:  # the run was deleted
                ended = True
            except Exception:  # a database that is away for a while is no reason to stop
                logger.exception('The registry does not answer')
                continue
            if ended:
                logger.error('The run was ended from outside: stopping')
                os.kill(os.getpid(), signal.SIGTERM)
                return


def reason(error: Exception) -> str:
    """Why a run failed, in one sentence."""
    text = str(error).strip().splitlines()
    if isinstance(error, MemoryError) or 'out of memory' in str(error).lower():
        return f'Out of memory: lower batch_size or max_length ({text[0] if text else type(error).__name__})'
    if not text:
        return type(error).__name__
    return text[0] if isinstance(error, ValueError | FloatingPointError) else f'{type(error).__name__}: {text[0]}'


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
