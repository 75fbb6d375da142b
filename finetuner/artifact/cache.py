"""The folders of artifacts that were fetched or unpacked: each is kept below a size, whatever is promoted."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

LIMIT = 'FINETUNER_ARTIFACT_CACHE_BYTES'
DEFAULT_LIMIT = 20 * 10**9
IN_USE = 3600.0
"""Seconds since its last use for which an entry is never removed: another process may be about to read it."""
ASIDE = ('.download-', '.unpacking-', '.damaged-')
_DAY = 24 * 60 * 60


def mark_used(entry: Path) -> None:
    """Note that an entry is used now."""
    with contextlib.suppress(FileNotFoundError):  # another process removed it
        os.utime(entry)


def make_room(folder: Path) -> None:
    """Remove what was not used for longest while the folder is larger than `FINETUNER_ARTIFACT_CACHE_BYTES` (default
    20 GB), and what processes that were killed left in it a day ago or before."""
    limit = int(os.environ.get(LIMIT) or DEFAULT_LIMIT)
    entries = sorted((age_of(entry), entry) for entry in folder.iterdir())
    sizes = {entry: size_of(entry) for _, entry in entries}
    used = sum(sizes.values())
    for age, entry in reversed(entries):
        is_leftover = entry.name.startswith(ASIDE) or entry.name.endswith('.part')
        if age > _DAY if is_leftover else age > IN_USE and used > limit:
            _remove(entry)
            used -= sizes[entry]


def age_of(entry: Path) -> float:
    """Seconds since an entry was used; 0 if it is gone."""
    try:
        return time.time() - entry.lstat().st_mtime
    except FileNotFoundError:  # another process was faster
        return 0.0


def size_of(entry: Path) -> int:
    """Bytes of a file, or of all that are below a folder; 0 if it is gone."""
    size = 0
    for path in entry.rglob('*') if entry.is_dir() else [entry]:
        with contextlib.suppress(FileNotFoundError):
            size += 0 if path.is_dir() else path.lstat().st_size
    return size


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
