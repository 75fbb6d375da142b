"""Workers as processes of this machine."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import asdict
from typing import IO, Any

from registry import Registry, RunRecord
from registry.queue import Machine, Resources, needed
from training.launchers.attempt import Attempt, Policy, attempts_folder, lock
from training.launchers.child import Child, Orphan
from training.launchers.guard import Guard, Note


class LocalLauncher:
    """Starts a worker for each run, with a thread that looks after it.

    :param slots: runs without a GPU at the same time.
    :param gpus: ids of the GPUs, as CUDA_VISIBLE_DEVICES takes them. Each is one run's at a time.
    """

    def __init__(self, registry: Registry, logger: logging.Logger, slots: int, gpus: tuple[str, ...], policy: Policy):
        self._registry, self._logger, self._policy = registry, logger, policy
        self._gpus = gpus
        self._total = Resources(slots, len(gpus), float(len(os.sched_getaffinity(0))))
        self._guards: dict[Guard, tuple[threading.Thread, Resources]] = {}

    def machines(self) -> list[Machine]:
        """This machine, as it is now."""
        free = self._total
        for _, used in self._guards.values():
            free -= used
        return [Machine(self._total, free)]

    def launch(self, run: RunRecord) -> None:
        """Begin to work on a run that was claimed."""
        needs = needed(run.config, self.machines())
        taken = {gpu for guard in self._guards for gpu in guard.attempt.gpus or ()}
        gpus = tuple(gpu for gpu in self._gpus if gpu not in taken)[: needs.gpus]
        attempt = Attempt.of(run, self._policy, gpus)
        note = Note(self._registry, attempt.lease)
        try:
            worker = Child(self._registry, attempt)
        except OSError as error:
            note.discard()
            self._registry.fail_run(run.id, f'The worker process could not be started: {error}', attempt.lease)
            return
        values = {'pid': worker.pid, 'needs': asdict(needs), 'attempt': asdict(attempt)}
        published = note.publish(json.dumps(values))
        self._logger.info(f'run {attempt.name}: worker {worker.pid} started')
        self._watch(Guard(self._registry, attempt, worker, published, self._logger), needs)

    def adopt(self) -> None:
        """Look after the workers that a service which is no more has left on this machine, and what is left of them."""
        for path in attempts_folder(self._registry.home).glob('*.json'):
            try:
                note = lock(path, 'r+')
            except FileNotFoundError:
                continue
            if note is not None:
                self._adopt(note)

    def look(self) -> None:
        """Forget those who have ended."""
        self._guards = {guard: kept for guard, kept in self._guards.items() if kept[0].is_alive()}

    def run_ids(self) -> set[str]:
        """The runs whose workers have not ended."""
        return {guard.attempt.run_id for guard in self._guards}

    def close(self) -> None:
        """End all workers. Their runs wait again."""
        for guard in self._guards:
            guard.stop()
        for thread, _ in self._guards.values():
            thread.join()
        self._guards.clear()

    def lost(self, lease: str) -> bool:
        """End the worker of this lease, which is not heard of any more, if it is one of these. Whether it is."""
        for guard in self._guards:
            if guard.attempt.lease == lease:
                guard.kill()
                return True
        return False

    def _adopt(self, note: IO[Any]) -> None:
        values = json.loads(note.read())
        attempt = Attempt(**values['attempt'] | {'policy': self._policy})
        worker = Orphan(self._registry.home, attempt.lease, values['pid'])
        self._logger.info(f'run {attempt.name}: worker {worker.pid} of another service is looked after')
        self._watch(Guard(self._registry, attempt, worker, note, self._logger), Resources(**values['needs']))

    def _watch(self, guard: Guard, needs: Resources) -> None:
        thread = threading.Thread(target=guard.watch, name=f'guard of {guard.attempt.name}', daemon=True)
        thread.start()
        self._guards[guard] = thread, needs
