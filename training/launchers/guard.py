"""Looks after the worker of one attempt: its limits, its end, and what its end means for the run."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import threading
import time
from typing import IO, Any

from finetuner.excepts import RegistryError
from registry import Registry
from registry.records import FAILED, FINISHED
from training.launchers.attempt import Attempt, lock, log_path, note_path
from training.launchers.child import Worker
from training.launchers.log_sender import LogSender, last_line
from training.memory import Footprint, kills_for_memory, machine_limit, out_of_memory, own_bytes
from training.run_folder import remove_scratch, remove_training

INTERVAL = 0.25
ASK_SECONDS = 2.0
"""Between two looks at whether the run is still the worker's."""
START_SECONDS = 300.0
"""For which the guard speaks for a worker that has yet to begin: on a busy machine its imports take long."""
GRACE = 10.0
"""Seconds that a worker has to end when its service is stopped: it writes a checkpoint."""
CANCEL_GRACE = 60.0
"""Seconds that a worker has to end after its run was ended: it finishes a batch, and writes a checkpoint."""
SETTLE_SECONDS = 10.0
"""Seconds for which a service that is stopped waits for a registry that does not answer."""
STOPPED = 'The service was stopped: the run goes on when one is there'


class Guard:
    """
    :param note: the file of the attempt that tells others there is a guard, with its lock.
    """

    def __init__(self, registry: Registry, attempt: Attempt, worker: Worker, note: IO[Any], logger: logging.Logger):
        self._registry, self.attempt, self._worker, self._note, self._logger = registry, attempt, worker, note, logger
        self._log = log_path(registry.home, attempt.lease)
        self._kills = kills_for_memory()
        self._stopping = threading.Event()
        self._deadline, self._is_asked = math.inf, False
        self._verdict: str | None = None
        self._is_silent = False

    def stop(self) -> None:
        """Have the worker end, as the service does; its run waits again."""
        self._stopping.set()

    def kill(self) -> None:
        """End a worker that does not give a sign of life any more."""
        self._worker.signal(signal.SIGKILL)
        self._is_silent = True

    def watch(self) -> None:
        """Return when the worker has ended and the run is settled."""
        began = asked = time.monotonic()
        while not self._worker.has_ended():
            time.sleep(INTERVAL)
            now = time.monotonic()
            self._check_memory()
            if self._stopping.is_set():
                self._end_worker(GRACE)
            limit = self.attempt.policy.max_seconds
            if limit is not None and now - began > limit and self._verdict is None:
                self._verdict = f'The run took longer than the {limit:g} seconds that this service allows it'
            if self._verdict is not None:
                self._end_worker(CANCEL_GRACE)
            if now - asked > ASK_SECONDS:
                asked = now
                if not self._is_held(speak=now - began < START_SECONDS and not self._has_begun()):
                    self._end_worker(CANCEL_GRACE, ask=False)  # it has heard of it by itself
        self._worker.signal(signal.SIGKILL)  # what it may have left of its process group
        self._settle()

    def _check_memory(self) -> None:
        limit = self.attempt.memory_limit
        if limit is None or self._verdict is not None or (taken := own_bytes(self._worker.pid)) <= limit:
            return
        what = f'{taken / 1e6:.0f} MB, of {limit / 1e6:.0f} MB that its memory_limit allows'
        self._verdict = out_of_memory(self._footprint, limit, what)
        self._worker.signal(signal.SIGKILL)

    def _end_worker(self, grace: float, ask: bool = True) -> None:
        now = time.monotonic()
        if ask and not self._is_asked:
            self._is_asked = True
            self._worker.signal(signal.SIGTERM)
        self._deadline = min(self._deadline, now + grace)
        if now > self._deadline:
            self._worker.signal(signal.SIGKILL)

    def _has_begun(self) -> bool:
        """The worker prints something when it has told the registry that it lives."""
        return self._log.stat().st_size > 0

    def _is_held(self, speak: bool) -> bool:
        run_id, lease = self.attempt.run_id, self.attempt.lease
        try:
            return self._registry.heartbeat(run_id, None, lease) if speak else self._registry.is_held(run_id, lease)
        except RegistryError:  # the run was deleted
            return False
        except Exception:  # a registry that is away for a while is no reason to stop
            return True

    def _settle(self) -> None:
        """Tell the registry what became of the attempt, as soon as it answers."""
        begun = time.monotonic()
        while True:
            try:
                self._tell()
                break
            except Exception:
                self._logger.exception(f'run {self.attempt.name}: the registry cannot be told of its end')
                if self._stopping.is_set() and time.monotonic() - begun > SETTLE_SECONDS:
                    self._note.close()  # whoever comes next finds what is left
                    return
            self._stopping.wait(1.0)
        # the note last: without it nobody would look for the log
        self._log.unlink(missing_ok=True)
        note_path(self._registry.home, self.attempt.lease).unlink(missing_ok=True)
        self._note.close()

    def _tell(self) -> None:
        run_id, lease, policy = self.attempt.run_id, self.attempt.lease, self.attempt.policy
        LogSender(self._registry, run_id, lease, self._log).send()
        directory = self._registry.run_directory(run_id)
        remove_scratch(directory)
        try:
            run = self._registry.get_run_by_id(run_id)
        except RegistryError:  # deleted, while its worker was about to stop
            shutil.rmtree(directory, ignore_errors=True)
            return
        if not self._registry.is_held(run_id, lease):
            self._registry.release_run(run_id, lease)
            if run.status == FINISHED:
                remove_training(directory)
            self._logger.info(f'run {self.attempt.name}: {run.status}: {run.details}')
            return
        reason = self._verdict or self._killed_for_memory()
        if reason is not None:
            self._registry.fail_run(run_id, reason, lease)
            self._logger.error(f'run {self.attempt.name}: {FAILED}: {reason}')
            return
        if self._stopping.is_set():
            reason = STOPPED
        elif self._is_silent:
            reason = f'The worker process {self._worker.pid} gave no sign of life any more, and was killed'
        else:
            last = last_line(self._log)
            reason = f'{self._worker.end}. The last line of its log: {last}'.rstrip('.') if last else self._worker.end
        status = self._registry.retry_run(
            run_id,
            lease,
            reason,
            max_retries=policy.max_retries,
            delay=policy.retry_delay,
            counts=not self._stopping.is_set(),
        )
        self._logger.warning(f'run {self.attempt.name}: {status}: {reason}')

    @property
    def _footprint(self) -> Footprint | None:
        return Footprint.read(self._registry.run_directory(self.attempt.run_id))

    def _killed_for_memory(self) -> str | None:
        if not self._worker.was_killed or kills_for_memory() == self._kills:
            return None
        limit = machine_limit()
        return out_of_memory(self._footprint, limit, f'the system, which has {limit / 1e6:.0f} MB, killed the worker')


class Note:
    """The file that tells other services of this machine of an attempt, and that it has a guard.

    It appears when it is complete and locked: nobody takes one that is being written for one without a guard.
    """

    def __init__(self, registry: Registry, lease: str):
        self._path = note_path(registry.home, lease)
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._aside = self._path.with_suffix('.aside')
        file = lock(self._aside, 'w')
        assert file is not None, 'a lease is new'
        self._file = file

    def publish(self, text: str) -> IO[Any]:
        self._file.write(text)
        self._file.flush()
        os.replace(self._aside, self._path)
        return self._file

    def discard(self) -> None:
        self._aside.unlink()
        self._file.close()
