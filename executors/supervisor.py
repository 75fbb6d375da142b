"""Gives every run a worker process of its own, and sees to it that no run stays STARTED without one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from logging import Logger
from pathlib import Path

import training
from finetuner.excepts import RegistryError
from registry import Registry, RunRecord
from registry.records import CANCELLED, CREATED, FINISHED, STARTED
from training.data import SCRATCH
from training.worker import TAKEN

INTERVAL = 1.0
"""Seconds between two looks at the runs."""
GRACE = 10.0
"""Seconds that a worker has to end after a SIGTERM."""
CANCEL_GRACE = 60.0
"""Seconds that a worker has to end after its run was cancelled: it finishes a batch, and writes a checkpoint."""


class Supervisor:
    """A thread that starts workers for CREATED runs, waits for them, and fails the runs of those that died.

    Other services may do so with the same registry: a worker that is beaten by another's leaves the run to it.

    It also fails runs of workers that it did not start, such as those of a service that was killed: once their process
    is gone, or once they have not been heard of for `heartbeat_timeout`.

    :param max_runs: runs at work at the same time on this machine.
    :param heartbeat_timeout: seconds of silence after which a worker counts as lost.
    """

    def __init__(self, registry: Registry, logger: Logger, max_runs: int = 1, heartbeat_timeout: float = 60.0):
        self._registry = registry
        self._logger = logger
        self._max_runs = max_runs
        self._heartbeat_timeout = heartbeat_timeout
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name='supervisor', daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is a new run: start it now rather than at the next look."""
        self._wake.set()

    def close(self) -> None:
        """End the workers, by SIGTERM and after a while by SIGKILL.

        Their runs are FAILED. Runs that are CREATED, or at work elsewhere, stay as they are.
        """
        self._stopping = True
        self._wake.set()
        self._thread.join()
        for process in self._workers.values():
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        for process in self._workers.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal(process, signal.SIGKILL)
            process.wait()
        for run_id, process in self._workers.items():
            try:
                run = self._registry.get_run_by_id(run_id)
                if run.status == STARTED and run.worker == _name(process):
                    self._registry.fail_run(run_id, 'The service was stopped while the run was at work')
            except Exception:  # the next start finds that its worker is gone
                self._logger.exception(f'cannot end the run {run_id}')
        self._workers.clear()

    def _watch(self) -> None:
        while not self._stopping:
            try:
                self._look()
            except Exception:  # such as a database that is away for a while: the next look may succeed
                self._logger.exception('cannot look after the runs')
            self._wake.wait(INTERVAL)
            self._wake.clear()

    def _look(self) -> None:
        for run_id, process in list(self._workers.items()):
            if process.poll() is not None:
                self._bury(run_id, process)
        runs = self._registry.unfinished_runs()
        unfinished = {run.id for run in runs}
        for run_id, process in self._workers.items():
            if run_id not in unfinished:
                self._hurry(run_id, process)
        busy = sum(self._check(run) for run in runs if run.status == STARTED)
        starting = sum(run.status == CREATED and run.id in self._workers for run in runs)
        free = self._max_runs - busy - starting
        waiting = [run for run in runs if run.status == CREATED and run.id not in self._workers]
        for run in waiting[: max(0, free)]:
            self._launch(run)

    def _launch(self, run: RunRecord) -> None:
        # -P: a folder called `training` in the working directory must not come before ours
        command = [sys.executable, '-P', '-m', 'training.worker', run.id]
        try:
            with (self._registry.run_directory(run.id) / 'log.txt').open('ab') as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment(),
                    start_new_session=True,
                )
        except OSError as error:
            self._registry.fail_run(run.id, f'The worker process could not be started: {error}')
            return
        self._workers[run.id] = process
        self._logger.info(f'run {run.name} of {run.experiment_name}: worker {process.pid} started')

    def _environment(self) -> dict[str, str]:
        root = str(Path(training.__file__).parent.parent)
        paths = [root, *filter(None, [os.environ.get('PYTHONPATH')])]
        own = {
            'FINETUNER_HOME': str(self._registry.home),
            'PYTHONPATH': os.pathsep.join(paths),
            'PYTHONUNBUFFERED': '1',
        }
        return {**os.environ, **own}

    def _bury(self, run_id: str, process: subprocess.Popen[bytes]) -> None:
        """A worker of ours has ended: fail its run unless the run has ended too, or is another worker's."""
        _signal(process, signal.SIGKILL)  # what it may have left of its process group
        run = self._find(run_id)
        if run is None:  # deleted, while its worker was about to stop
            shutil.rmtree(self._registry.run_directory(run_id), ignore_errors=True)
            del self._workers[run_id]
            return
        resumed = run.status == CREATED and run.worker == _name(process)  # the next worker is yet to come
        never_began = run.status == CREATED and process.returncode != TAKEN and not resumed
        if never_began or (run.status == STARTED and run.worker == _name(process)):
            reason = _describe_end(process.returncode)
            last = _last_line(self._registry.run_directory(run_id) / 'log.txt')
            self._fail(run, f'{reason}. The last line of its log: {last}' if last else reason)
        elif process.returncode == TAKEN:
            self._logger.info(f'run {run.name} of {run.experiment_name}: another worker has it')
        elif run.status in (FINISHED, CANCELLED) or resumed:
            self._logger.info(f'run {run.name} of {run.experiment_name}: {run.status.lower()}')
        else:
            self._logger.error(f'run {run.name} of {run.experiment_name}: {run.status}: {run.details}')
        del self._workers[run_id]

    def _hurry(self, run_id: str, process: subprocess.Popen[bytes]) -> None:
        """The run of a living worker was cancelled: the worker stops by itself, or else is killed after a while."""
        run = self._find(run_id)
        if run is None or run.status != CANCELLED or run.finished_at is None:
            return
        if (datetime.now(UTC) - run.finished_at).total_seconds() > CANCEL_GRACE:
            _signal(process, signal.SIGKILL)
            shutil.rmtree(self._registry.run_directory(run_id) / SCRATCH, ignore_errors=True)

    def _find(self, run_id: str) -> RunRecord | None:
        with suppress(RegistryError):
            return self._registry.get_run_by_id(run_id)
        return None

    def _check(self, run: RunRecord) -> bool:
        """Whether a STARTED run has a living worker on this machine. Fails the run if its worker is lost."""
        host, _, pid = (run.worker or '').rpartition(':')
        process = self._workers.get(run.id)
        is_local = host == socket.gethostname()
        heard = run.heartbeat_at or run.started_at or run.created_at
        silence = (datetime.now(UTC) - heard).total_seconds()
        if process is None and is_local and not _is_alive(pid):
            self._fail(run, f'The worker process {pid} is gone: it was killed, or its machine went down')
            return False
        if silence > self._heartbeat_timeout:
            if process is not None:
                _signal(process, signal.SIGKILL)
            self._fail(run, f'The worker {run.worker} has not been heard of for {silence:.0f} seconds')
            return False
        return is_local

    def _fail(self, run: RunRecord, reason: str) -> None:
        if self._registry.fail_run(run.id, reason):
            shutil.rmtree(self._registry.run_directory(run.id) / SCRATCH, ignore_errors=True)  # a killed worker's
            self._logger.error(f'run {run.name} of {run.experiment_name}: {reason}')


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the process group of a worker: it began a session, so the group has its number."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _name(process: subprocess.Popen[bytes]) -> str:
    """What a worker calls itself in the registry."""
    return f'{socket.gethostname()}:{process.pid}'


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _describe_end(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f'signal {-code}'
        hint = ' (by hand, or by the system for want of memory)' if -code == signal.SIGKILL else ''
        return f'The worker process was killed by {name}{hint}'
    return f'The worker process ended with exit code {code} before the run was finished'


def _last_line(path: Path) -> str:
    if not path.exists():
        return ''
    with path.open('rb') as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 4096))
        lines = [line.strip() for line in file.read().decode(errors='replace').splitlines()]
    return next((line for line in reversed(lines) if line), '')[:300]
