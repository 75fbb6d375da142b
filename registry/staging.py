"""Objects on their way into the store: what a process that died half-way leaves behind is found and removed.

An object is first written to a file aside, then put in the store, then made known by a row in the database. Before
the first of these steps a note with the object's key is written. The note goes when the row is committed, or when the
object has been removed again. Every process keeps its notes in a folder of its own that it holds a lock on: notes in
a folder without a holder are settled by whoever opens the registry next.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from registry.names import new_id
from registry.objects import ObjectStore

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of a file: one holder at a time among all processes of this machine."""
    with path.open('a') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass
class Staged:
    """One object on its way.

    :param key: its key in the store.
    :param path: where its file is to be written.
    """

    key: str
    path: Path


class Staging:
    """The notes and files aside of one process.

    :param folder: of all processes; on the disk of this machine.
    :param is_referenced: whether the database knows an object by this key.
    """

    def __init__(self, folder: Path, objects: ObjectStore, is_referenced: Callable[[str], bool]):
        self._folder = folder
        self._objects = objects
        self._is_referenced = is_referenced
        self._own = folder / new_id()
        self._own.mkdir(parents=True)
        lock = self._hold(self._own)
        if lock is None:
            raise RuntimeError(f'{self._own} is held by another process')
        self._lock = lock

    @contextmanager
    def stage(self, key: str) -> Iterator[Staged]:
        """A place for the file of the object `key`. At the end the object goes, unless the database references it."""
        note = self._own / f'{new_id()}.key'
        note.write_text(key)
        staged = Staged(key, note.with_suffix('.aside'))
        try:
            yield staged
        finally:
            try:
                self._settle(note)
            except Exception:
                # the note stays, and the object's fate is decided at the next start
                logger.exception('Could not tell whether %s is to be kept', key)

    def recover(self) -> None:
        """Settle what processes that are no more have left. To be called by one process at a time."""
        for folder in self._folder.iterdir():
            lock = self._hold(folder) if folder != self._own else None
            if lock is None:
                continue
            with lock:
                for note in folder.glob('*.key'):
                    self._settle(note)
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        # a note that is there still could not be settled: the next one that opens the registry does so
        if not any(self._own.glob('*.key')):
            shutil.rmtree(self._own, ignore_errors=True)
        self._lock.close()

    def _settle(self, note: Path) -> None:
        # a note that a crash of the machine left empty was followed by nothing
        key = note.read_text()
        if key and not self._is_referenced(key):
            self._objects.delete(key)
        note.with_suffix('.aside').unlink(missing_ok=True)
        note.unlink()

    @staticmethod
    def _hold(folder: Path) -> IO[str] | None:
        try:
            file = (folder / 'lock').open('a')
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file
