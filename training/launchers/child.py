"""The processes of an attempt: those that this process started, and those of a service that is no more."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from registry import Registry
from training.launchers.attempt import Attempt, lock, log_path


class Worker(Protocol):
    """The processes of an attempt: the group whose number is `pid`, and those that torchrun starts from there."""

    pid: int

    def has_ended(self) -> bool: ...

    @property
    def end(self) -> str:
        """How it ended, in a clause."""
        ...

    @property
    def was_killed(self) -> bool:
        """Whether it may have been ended by SIGKILL."""
        ...

    def signal(self, number: signal.Signals) -> None: ...


class Child:
    """A worker of this process.

    :raises OSError: it could not be started.
    """

    def __init__(self, registry: Registry, attempt: Attempt):
        log = lock(log_path(registry.home, attempt.lease), 'ab')
        assert log is not None, 'a lease is new'
        with log:
            self._process = subprocess.Popen(
                attempt.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=attempt.environment(registry),
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._lease, self._is_parent = attempt.lease, attempt.processes > 1

    def has_ended(self) -> bool:
        if self._process.poll() is None:
            return False
        if not self._is_parent or not processes_of(self._lease):
            return True
        self.signal(signal.SIGKILL)  # their parent was killed: nobody looks after them
        return False

    @property
    def end(self) -> str:
        code = self._process.returncode
        if code >= 0:
            return f'The worker process ended with exit code {code} before the run was finished'
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f'signal {-code}'
        return f'The worker process was killed by {name}'

    @property
    def was_killed(self) -> bool:
        # where one of several processes is killed, their parent ends by itself
        return self._process.returncode == -signal.SIGKILL or self._is_parent

    def signal(self, number: signal.Signals) -> None:
        signal_all(self.pid, self._lease, number)


class Orphan:
    """A worker of a service that was killed, on this machine: it holds the lock of its log."""

    def __init__(self, home: Path, lease: str, pid: int):
        self._log, self._lease = log_path(home, lease), lease
        self.pid = pid
        self.was_killed = False  # nobody knows: it is tried again

    def has_ended(self) -> bool:
        try:
            free = lock(self._log, 'rb')
        except FileNotFoundError:
            return True
        if free is None:
            return False
        free.close()
        return True

    @property
    def end(self) -> str:
        return f'The worker process {self.pid} is gone: it was killed, or its machine went down'

    def signal(self, number: signal.Signals) -> None:
        if not self.has_ended():  # the number may be another's by now
            signal_all(self.pid, self._lease, number)


def signal_all(pid: int, lease: str, number: signal.Signals) -> None:
    """Send a signal to the process group of a worker: it began a session, so the group has its number.

    torchrun hands on what it is sent, but it cannot hand on SIGKILL: each of its processes began a session, too.
    """
    signal_group(pid, number)
    if number == signal.SIGKILL:
        for process in processes_of(lease):
            signal_group(process.pid, number)


def signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def processes_of(lease: str) -> list[psutil.Process]:
    """Those whose last argument is the lease: torchrun and its processes, also when it is gone and they are not."""
    return [process for process in psutil.process_iter(['cmdline']) if (process.info['cmdline'] or [''])[-1] == lease]
