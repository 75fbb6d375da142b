"""What a container engine does with the services of a docker-compose file, and killing them at random."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from tools.drill.composed import Composed


class Engine(Composed):
    """Runs all replicas of the services; a process that ends is started again."""

    def __init__(self, file: Path, **variables: str):
        super().__init__(file, {}, FINETUNER_DRILL=str(file.parent), **variables)
        self.kills: Counter[str] = Counter()
        self.doubled: set[str] = set()  # the ids of runs that were seen with two workers
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    @property
    def host(self) -> str:
        return f'grpc://127.0.0.1:{self.port}'

    def start(self) -> None:
        """Start all, and see to it from now on that they run."""
        for member in self.members:
            self.start_one(member)
        self._keeper.start()

    def kill_one(self, chooser: random.Random) -> str:
        """SIGKILL a process at random: of a service, or the worker of a run, and return what it was."""
        workers = self.workers()
        victim = chooser.choice([*self.running, *(['worker'] * len(workers))])
        if victim == 'worker':
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(chooser.choice(workers).pid, signal.SIGKILL)
        else:
            with self._lock:
                self.running[victim].kill()
        kind = self.members.get(victim, victim)
        self.kills[kind] += 1
        return victim

    def workers(self) -> list[psutil.Process]:
        """The processes that work on runs, each the first of its group."""
        found = []
        for process in psutil.process_iter(['cmdline', 'environ']):
            command, environment = process.info['cmdline'] or [], process.info['environ'] or {}
            if 'training.worker' in command and environment.get('FINETUNER_DRILL') == str(self.folder):
                with suppress(ProcessLookupError):  # it has just ended
                    if os.getpgid(process.pid) == process.pid:
                        found.append(process)
        return found

    def stop(self) -> dict[str, int]:
        """End all in order, the gateway first. Returns the exit codes."""
        self._stopping.set()
        self._keeper.join()
        order = sorted(self.running, key=lambda member: self.members[member] != 'gateway')
        return {member: self.stop_one(member) for member in order}

    def kill(self) -> None:
        """End all of it at once."""
        self._stopping.set()
        for process in self.running.values():
            process.kill()
        for worker in self.workers():
            worker.kill()

    def homes(self) -> list[Path]:
        """The volumes with the state of a service."""
        homes = {
            self.volume(member, volume['source'])
            for member, service in self.members.items()
            for volume in self.services[service].get('volumes', ())
            if volume['source'].endswith('home')
        }
        return sorted(homes)

    def _keep(self) -> None:
        while not self._stopping.wait(0.5):
            at_work = Counter(process.info['cmdline'][-2] for process in self.workers())
            self.doubled |= {run_id for run_id, count in at_work.items() if count > 1}
            with self._lock:
                for member in [one for one, process in self.running.items() if process.poll() is not None]:
                    self.start_one(member)
