"""The folder of a run on the machine that works on it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SCRATCH = 'work'  # of files that are needed on the way only
CHECKPOINTS = 'checkpoints'
BEST = 'best.safetensors'
SECRETS = 'secrets.json'
FOOTPRINT = 'memory.json'


class FolderInUse(ValueError):
    """Another process works in the folder."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a folder until the end, which is that of the process at the latest.

    :raises FolderInUse: another holds it.
    """
    folder = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(f'another training is at work in {directory}: give another directory') from None
        yield
    finally:
        os.close(folder)


def remove_scratch(directory: Path) -> None:
    """Remove what a worker that was killed has left, unless another works here by now."""
    with suppress(FolderInUse), locked(directory):
        shutil.rmtree(directory / SCRATCH, ignore_errors=True)


def remove_training(directory: Path) -> None:
    """Remove what a run needed to go on, which it cannot any more."""
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    for name in (BEST, SECRETS, FOOTPRINT):
        (directory / name).unlink(missing_ok=True)
