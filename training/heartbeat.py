"""The signs of life of a worker."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetuner.excepts import NotFoundError, RegistryError
from registry import Registry
from registry.records import CREATED, FINISHED, STARTED

if TYPE_CHECKING:
    from training.progress import Progress

logger = logging.getLogger(__name__)

SECONDS = 2
WITH_PARENT = 'FINETUNER_END_WITH_PARENT'
"""An environment variable of workers that nobody on their machine would look after without their parent."""


class Heartbeat:
    """Tells the registry every few seconds that this process lives, and how far it is. Ends it when there is nothing to
    live for: the run has ended, or another has it.

    :param worker: what this process calls itself, `host:pid`.
    """

    def __init__(self, registry: Registry, run_id: str, lease: str, worker: str):
        self.lease, self.worker = lease, worker
        self._registry, self._run_id = registry, run_id
        self._progress: dict[str, Any] | None = None
        self._served: str | None = None
        self._parent = os.getppid() if os.environ.get(WITH_PARENT) else None
        self._is_ending = False
        self._beating = threading.Lock()
        self._stop = threading.Event()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beats within."""
        thread = threading.Thread(target=self._keep_beating, name='heartbeat', daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def report(self, progress: Progress) -> None:
        """What to tell next."""
        self._progress = dataclasses.asdict(progress)

    def beat(self) -> bool:
        """Give a sign of life now. False if the run has ended, or another worker has it."""
        with self._beating:  # what was reported before is not told after it
            return self._registry.heartbeat(self._run_id, self._progress, self.lease, self.worker)

    def serve(self, run_id: str) -> bool:
        """From now on, end also when this other run has. False if it has already."""
        self._served = run_id
        return self._is_of_use()

    def _is_of_use(self) -> bool:
        if self._served is None:
            return True
        try:
            return self._registry.get_run_by_id(self._served).status in (CREATED, STARTED)
        except NotFoundError:
            return False

    def _keep_beating(self) -> None:
        is_away = False
        while not self._stop.wait(SECONDS):
            if self._parent is not None and os.getppid() != self._parent:
                self._end('The process that looked after this one is gone: stopping')
            try:
                if not self.beat() and self._registry.get_run_by_id(self._run_id).status != FINISHED:
                    self._end('The run was ended from outside, or another worker has it: stopping')
                elif not self._is_of_use():
                    self._end('What this run was made for has ended: stopping')
            except RegistryError:
                self._end('The run was deleted: stopping')
            except Exception:  # a database that is away for a while is no reason to stop
                # not why: that names hosts and users, and the log is read by who owns the run
                if not is_away:
                    logger.warning('The registry does not answer: going on without it')
                is_away = True
            else:
                is_away = False

    def _end(self, why: str) -> None:
        # it goes on beating while it ends: so long nobody else begins
        if not self._is_ending:
            self._is_ending = True
            logger.error(why)
            os.kill(os.getpid(), signal.SIGTERM)
