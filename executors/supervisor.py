"""Takes runs from the queue as long as there is room, and sees to it that no run stays with a worker that is lost."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from dataclasses import dataclass
from logging import Logger
from typing import Protocol

from registry import Registry, RunRecord
from registry.queue import Lease, Machine
from registry.records import STARTED
from training.launchers.attempt import Policy
from training.launchers.tidying import tidy

INTERVAL = 1.0
"""Seconds between two looks at the runs."""
GRACE = 10.0
"""Seconds in which workers could write their signs of life, before one of them is given up."""
TIDY_SECONDS = 3600.0
"""Between two looks at what runs that are no more have left on this machine."""


class Launcher(Protocol):
    """Where workers are: `training.launchers.local` or `training.launchers.ray_cluster`."""

    def machines(self) -> list[Machine]: ...

    def launch(self, run: RunRecord) -> None: ...

    def adopt(self) -> None: ...

    def look(self) -> None: ...

    def run_ids(self) -> set[str]: ...

    def lost(self, lease: str) -> bool: ...

    def close(self) -> None: ...


@dataclass
class Sign:
    """When, by the clock of this process, a worker's latest sign of life was first seen."""

    lease: Lease
    seen: float


class Supervisor:
    """A thread that claims runs and launches their workers.

    Other services may do so with the same registry, on this machine or on others: each run has one lease at a time.

    Runs of a worker that has not been heard of for `heartbeat_timeout` are queued again, or FAILED after their last
    attempt, whoever launched it. The time is that which passed here while the registry answered: clocks of machines
    may differ, and a database that was away is no fault of the workers. Nor is one that could be read and not written,
    as while a backup is made: at the end of that time, this process has to be able to write as well.

    :param heartbeat_timeout: seconds.
    """

    def __init__(
        self,
        registry: Registry,
        logger: Logger,
        launcher: Launcher,
        policy: Policy | None = None,
        heartbeat_timeout: float = 60.0,
    ):
        self._registry, self._logger, self._launcher = registry, logger, launcher
        self._policy = policy or Policy()
        self._heartbeat_timeout = heartbeat_timeout
        self._name = f'{socket.gethostname()}:{os.getpid()}'
        self._signs: dict[tuple[str, str | None], Sign] = {}
        self._writable_since = math.inf
        self._tidied = -math.inf
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name='supervisor', daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is a new run: start it now rather than at the next look."""
        self._wake.set()

    def close(self) -> None:
        """Claim no more, and end the workers by SIGTERM, after a while by SIGKILL. Their runs wait again."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        self._launcher.close()

    def _watch(self) -> None:
        while not self._stopping:
            try:
                self._tidy()
                self._launcher.look()
                self._launcher.adopt()
                self._find_lost()
                self._claim()
            except Exception:  # such as a database that is away for a while: the next look may succeed
                self._signs.clear()
                self._logger.exception('cannot look after the runs')
            self._wake.wait(INTERVAL)
            self._wake.clear()

    def _tidy(self) -> None:
        if time.monotonic() - self._tidied <= TIDY_SECONDS:
            return
        self._tidied = time.monotonic()
        try:
            tidy(self._registry)
        except Exception:  # the runs matter more
            self._logger.exception('cannot remove what runs have left')

    def _claim(self) -> None:
        while not self._stopping:
            run = self._registry.claim_run(self._name, self._launcher.machines(), self._launcher.run_ids())
            if run is None:
                return
            self._launcher.launch(run)

    def _find_lost(self) -> None:
        now = time.monotonic()
        signs = {}
        for lease in self._registry.leases():
            key = lease.run_id, lease.id
            known = self._signs.get(key)
            is_news = known is None or known.lease.heartbeat_at != lease.heartbeat_at
            signs[key] = Sign(lease, now) if is_news or known is None else known
        self._signs = signs
        grace = min(GRACE, self._heartbeat_timeout / 2)
        silent = [sign for sign in signs.values() if now - sign.seen > self._heartbeat_timeout - grace]
        self._check_writable(bool(silent), grace)
        for sign in silent:
            if now - sign.seen > self._heartbeat_timeout and now - self._writable_since > grace:
                self._give_up(sign.lease)

    def _check_writable(self, matters: bool, grace: float) -> None:
        """Note since when writers have not had to wait, from the moment on from which that matters."""
        if not matters:
            self._writable_since = math.inf
            return
        asked = time.monotonic()
        self._registry.check_writable()
        answered = time.monotonic()
        if answered - asked > grace / 2:
            self._writable_since = math.inf
        self._writable_since = min(self._writable_since, answered)

    def _give_up(self, lease: Lease) -> None:
        if lease.id is not None and self._launcher.lost(lease.id):
            return  # the run is settled when its worker has ended
        if lease.status != STARTED:
            assert lease.id is not None
            self._registry.release_run(lease.run_id, lease.id, lease.heartbeat_at)
            return
        reason = f'The worker {lease.worker} has not been heard of for {self._heartbeat_timeout:.0f} seconds'
        status = self._registry.retry_run(
            lease.run_id,
            lease.id,
            reason,
            max_retries=self._policy.max_retries,
            delay=self._policy.retry_delay,
            counts=not lease.is_silent,  # the trainer was lost before the worker had begun
            heartbeat_at=lease.heartbeat_at,
        )
        if status is not None:
            self._logger.error(f'run {lease.run_id}: {status}: {reason}')
