"""What runs have left on this machine, after they were deleted or finished on another."""

from __future__ import annotations

import shutil
import time

from registry import Registry
from registry.records import FINISHED
from training.run_folder import remove_training

AGE = 3600.0
"""Seconds for which a folder is left alone: it is made before its run is."""


def tidy(registry: Registry) -> None:
    """Remove the folders of runs that are no more, and of finished ones what they needed to go on."""
    home = registry.home / 'runs'
    before = time.time() - AGE
    folders = [folder for folder in home.glob('*') if folder.is_dir() and folder.stat().st_mtime < before]
    statuses = registry.run_statuses([folder.name for folder in folders])
    for folder in folders:
        status = statuses.get(folder.name)
        if status is None:
            shutil.rmtree(folder, ignore_errors=True)
        elif status == FINISHED:
            remove_training(folder)
