"""The folder of cached features, which all runs of this machine share, and which is kept below a size."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from finetuner import settings
from finetuner.artifact.cache import age_of, size_of
from training.rows import Rows

logger = logging.getLogger(__name__)

LIMIT = 'FINETUNER_FEATURE_CACHE_BYTES'
DEFAULT_LIMIT = 20 * 10**9
FREE_SHARE = 0.9  # of what is free on the disk
ABANDONED = 24 * 3600  # seconds after which an unfinished folder belongs to nobody any more


class CacheFolder:
    """`<home>/cache/features`, with one folder of rows for every key.

    Its size is limited by the environment variable FINETUNER_FEATURE_CACHE_BYTES, default 20 GB, 0 for no cache at all.
    Rows that are removed while a process has them open stay readable to it.
    """

    def __init__(self) -> None:
        self.root = settings.home() / 'cache' / 'features'
        self.limit = int(os.environ.get(LIMIT, DEFAULT_LIMIT))

    def path(self, key: str) -> Path:
        return self.root / key

    def open(self, key: str) -> Rows | None:
        """The rows of the key, which thereby count as the last used; None if there are none, or they are broken."""
        path = self.path(key)
        if not path.is_dir():
            return None
        try:
            rows = Rows(path)
            os.utime(path)
        except (OSError, ValueError) as error:
            logger.warning('Cached features are made anew: %s', error)
            return None
        return rows

    def make_room(self, needed: int) -> bool:
        """Remove what was not used for longest until there is room for so many bytes; False if there cannot be."""
        settings.made_home()
        self.root.mkdir(parents=True, exist_ok=True)
        if needed > self.limit:
            logger.warning(
                'Features of frozen layers are not cached: they need %.1f MB, and %s allows %.1f MB',
                needed / 1e6,
                LIMIT,
                self.limit / 1e6,
            )
            return False
        folders = sorted((entry for entry in self.root.iterdir() if entry.is_dir()), key=age_of, reverse=True)
        used = sum(map(size_of, folders))
        for folder in folders:
            unfinished = folder.name.startswith('.')
            full = used + needed > self.limit or needed > FREE_SHARE * shutil.disk_usage(self.root).free
            if age_of(folder) > ABANDONED if unfinished else full:
                used -= size_of(folder)
                shutil.rmtree(folder, ignore_errors=True)
        if needed > FREE_SHARE * shutil.disk_usage(self.root).free:
            logger.warning('Features of frozen layers are not cached: the disk has no room for %.1f MB', needed / 1e6)
            return False
        return True
