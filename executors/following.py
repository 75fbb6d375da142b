"""Following an alias: what it names is loaded beside the model that answers, and then takes its place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from logging import Logger

from executors.artifacts import Store
from finetuner.excepts import ArtifactNotFoundError

INTERVAL = 1.0
"""Seconds between two looks at the alias."""
RETRY = 30.0
"""Seconds until an artifact that could not be loaded is tried again."""


class Follower:
    """A thread that calls `switch` with the id of the artifact that an alias names, each time it names another one.

    Where that fails, what was there before stays.

    :param current: the id that is served now; None if the alias names nothing yet.
    :param switch: loads an artifact and has it served; it may take its time.
    """

    def __init__(self, alias: str, store: Store, current: str | None, switch: Callable[[str], None], logger: Logger):
        self._alias, self._store, self._current, self._switch, self._logger = alias, store, current, switch, logger
        self._stop = threading.Event()
        self._problem = ''
        self._thread = threading.Thread(target=self._follow, name='follower', daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._store.close()

    def _follow(self) -> None:
        failed, failed_at = None, 0.0
        while not self._stop.wait(INTERVAL):
            named = None
            try:
                named = self._look()
                if named not in (None, self._current):
                    if named == failed and time.monotonic() - failed_at < RETRY:
                        continue  # loading is dear: not every second
                    self._switch(named)
                    self._current = named
                failed, self._problem = None, ''
            except Exception as error:  # whatever it is, the model that answers is none the worse
                failed, failed_at = named, time.monotonic()
                problem = f'{type(error).__name__}: {error}'
                if problem != self._problem:  # once, not every second
                    now = self._current or 'what is there'
                    self._logger.error(f'{self._alias} is not followed, {now} goes on answering: {problem}')
                self._problem = problem

    def _look(self) -> str | None:
        """The id of the artifact that the alias names; None if it has never named any."""
        try:
            return self._store.id_of(self._alias)
        except ArtifactNotFoundError:
            if self._current is None:
                return None
            raise
