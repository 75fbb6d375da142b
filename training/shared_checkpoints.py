"""Checkpoints in the object store: a run whose machine is lost goes on elsewhere.

A checkpoint is packed as a zip of its two files, with the weights of the best epoch beside them. It is sent in the
background, so that the training does not wait; of several that come meanwhile, the latest.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import zipfile
from pathlib import Path
from types import TracebackType

from finetuner.excepts import RegistryError
from registry import Registry
from registry.names import new_id
from training.checkpoint import STATE, TENSORS, find_checkpoint, order
from training.run_folder import BEST, CHECKPOINTS

logger = logging.getLogger(__name__)

VARIABLE = 'FINETUNER_SHARE_CHECKPOINTS'
FOLDER = 'shared'  # in that of the run, of what is on its way
NAMES = (TENSORS, STATE, BEST)


def shares_checkpoints(registry: Registry) -> bool:
    """Whether the operator wants them in the object store: by default, if that is not a folder."""
    wanted = os.environ.get(VARIABLE)
    return not registry.objects.is_local if wanted is None else wanted.lower() not in ('', '0', 'false', 'no')


class CheckpointSharer:
    """Sends the latest checkpoint of a run. At its end it has sent the last one, or said why not."""

    def __init__(self, registry: Registry, run_id: str, lease: str, directory: Path):
        self._registry, self._run_id, self._lease, self._directory = registry, run_id, lease, directory
        self._folder = directory / FOLDER
        self._latest: Path | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._send, name='checkpoints', daemon=True)

    def __enter__(self) -> CheckpointSharer:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            if kind is None:  # the training is done: nobody goes on from here
                self._latest = None
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def offer(self, checkpoint: Path) -> None:
        """Send this one next. Its files are linked: the training may replace them now."""
        links = self._folder / new_id() / checkpoint.name
        links.mkdir(parents=True)
        for path in (checkpoint / TENSORS, checkpoint / STATE, self._directory / BEST):
            if path.exists():
                os.link(path, links / path.name)
        with self._changed:
            self._latest = links
            self._changed.notify()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._latest is not None or self._is_closed)
                latest, self._latest = self._latest, None
            if latest is None:
                return
            try:
                packed = pack(latest, self._folder / f'{new_id()}.zip')
                self._registry.store_checkpoint(self._run_id, self._lease, latest.name, packed)
            except RegistryError as error:
                logger.warning('%s', error)
            except Exception:  # the one before is still there, and the next may succeed
                logger.exception('The checkpoint %s could not be sent to the object store', latest.name)
            shutil.rmtree(latest.parent, ignore_errors=True)


def pack(checkpoint: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, 'w', zipfile.ZIP_STORED) as packed:
        for name in NAMES:
            if (checkpoint / name).exists():
                packed.write(checkpoint / name, name)
    return target


def fetch_checkpoint(registry: Registry, run_id: str, directory: Path) -> None:
    """Put the checkpoint of the object store into the folder of the run, unless a later one is there.

    :raises DataError: it is missing, or is not what was stored.
    """
    found = registry.find_checkpoint(run_id)
    own = find_checkpoint(directory / CHECKPOINTS)
    if found is None or (own is not None and order(own.name) >= order(found.name)):
        return
    aside = directory / f'.{new_id()}'
    target = aside / found.name
    target.mkdir(parents=True)
    try:
        with zipfile.ZipFile(registry.fetch_checkpoint(found, aside)) as packed:
            for name in NAMES:
                if name in packed.namelist():
                    packed.extract(name, target)
        if (target / BEST).exists():
            os.replace(target / BEST, directory / BEST)
        shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
        (directory / CHECKPOINTS).mkdir()
        target.rename(directory / CHECKPOINTS / found.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    logger.info('Fetched the checkpoint %s', found.name)
