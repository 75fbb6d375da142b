"""What runs have left on this machine, after they were deleted or finished on another."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

from registry import Registry
from registry.records import FINISHED
from training.launchers.attempt import attempts_folder, lock

AGE = 3600.0
"""Seconds for which what is there is left alone: a folder is made before its run is."""
LOG = 'log.txt'
"""Of a run of an earlier version, whose log is not in the database."""


def tidy(registry: Registry) -> None:
    """Remove what is left of runs that are no more or have finished, and of attempts that nobody looks after."""
    _tidy_attempts(attempts_folder(registry.home))
    home = registry.home / 'runs'
    before = time.time() - AGE
    folders = [folder for folder in home.glob('*') if folder.is_dir() and folder.stat().st_mtime < before]
    statuses = registry.run_statuses([folder.name for folder in folders])
    for folder in folders:
        status = statuses.get(folder.name)
        if status is None:
            shutil.rmtree(folder, ignore_errors=True)
        elif status == FINISHED:
            _empty(folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOG:
            path.unlink(missing_ok=True)


def _tidy_attempts(folder: Path) -> None:
    """Remove the files of attempts whose service was killed before they had a note, once their workers have ended."""
    before = time.time() - AGE
    for path in [*folder.glob('*.aside'), *folder.glob('*.log')]:
        with suppress(FileNotFoundError):
            if path.stat().st_mtime > before or path.with_suffix('.json').exists():
                continue
            if (file := lock(path, 'rb')) is not None:
                path.unlink()
                file.close()
