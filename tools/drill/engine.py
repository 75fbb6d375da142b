"""Running the services of a docker-compose file as processes of this machine, as a container engine would.

Volumes and secrets are folders and files beside the file, names of hosts are addresses of this machine, and since all
services share them, each has a port of its own. A process that ends is started again.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil
import yaml

GRPC, HTTP = '51000', '51001'
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


class Engine:
    """:param file: the compose file. `variables` are of all services, beside what the file gives them."""

    def __init__(self, file: Path, **variables: str):
        self.folder = file.parent
        self.content = yaml.safe_load(file.read_text())
        self.services = self.content['services']
        self.members = {
            f'{name}-{number}': name
            for name, service in self.services.items()
            for number in range(service.get('deploy', {}).get('replicas', 1))
        }
        self.ports = {member: free_port() for member in self.members}
        self.http_port = free_port()
        self.kills: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        self.doubled: set[str] = set()  # the ids of runs that were seen with two workers
        self._variables = variables
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        (self.folder / 'user').mkdir(exist_ok=True)

    @property
    def host(self) -> str:
        return f'grpc://127.0.0.1:{self.ports["gateway-0"]}'

    def start(self, *services: str) -> None:
        """Start all replicas of these services, and see to it from now on that they run."""
        for member, service in self.members.items():
            if service in services:
                self._start(member)
        if not self._keeper.is_alive():
            self._keeper.start()

    def kill_one(self, chooser: random.Random) -> str:
        """SIGKILL a process at random: of a service, or the worker of a run, and return what it was."""
        workers = self.workers()
        victim = chooser.choice([*self._running, *(['worker'] * len(workers))])
        with self._lock:
            if victim == 'worker':
                os.killpg(chooser.choice(workers).pid, signal.SIGKILL)
            else:
                self._running[victim].kill()
        kind = self.members.get(victim, victim)
        self.kills[kind] += 1
        return victim

    def workers(self) -> list[psutil.Process]:
        """The processes that work on runs, each the first of its group."""
        found = []
        for process in psutil.process_iter(['cmdline', 'environ']):
            command, environment = process.info['cmdline'] or [], process.info['environ'] or {}
            if 'training.worker' in command and environment.get('FINETUNER_DRILL') == str(self.folder):
                found.append(process)
        return [process for process in found if os.getpgid(process.pid) == process.pid]

    def stop(self) -> dict[str, int]:
        """SIGTERM, as an engine does, and SIGKILL after the time that the file gives. Returns the exit codes."""
        self._stopping.set()
        self._keeper.join()
        order = sorted(self._running, key=lambda member: self.members[member] != 'gateway')
        codes = {}
        for member in order:
            process = self._running[member]
            process.terminate()
            grace = int(self.services[self.members[member]]['stop_grace_period'].removesuffix('s'))
            try:
                codes[member] = process.wait(grace)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[member] = process.wait()
        return codes

    def kill(self) -> None:
        """End all of it at once."""
        self._stopping.set()
        for process in self._running.values():
            process.kill()
        for worker in self.workers():
            worker.kill()

    def homes(self) -> list[Path]:
        """The volumes with the state of a service."""
        homes = {
            self._volume(member, volume['source'])
            for member, service in self.members.items()
            for volume in self.services[service].get('volumes', ())
            if volume['source'].endswith('home')
        }
        return sorted(homes)

    def _keep(self) -> None:
        while not self._stopping.wait(0.5):
            at_work = Counter(process.info['cmdline'][-2] for process in self.workers())
            self.doubled |= {run_id for run_id, count in at_work.items() if count > 1}
            for member, process in list(self._running.items()):
                if process.poll() is not None:
                    self._start(member)

    def _start(self, member: str) -> None:
        service = self.services[self.members[member]]
        for volume in service.get('volumes', ()):
            self._volume(member, volume['source']).mkdir(parents=True, exist_ok=True)
        with (self.folder / f'{member}.log').open('ab') as log, self._lock:
            self._running[member] = subprocess.Popen(
                self._command(member),
                cwd=self.folder / 'user',
                env=self._environment(member),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts[member] += 1

    def _command(self, member: str) -> list[str]:
        service = self.services[self.members[member]]
        [program] = service['entrypoint']
        return [str(BIN / program), *(self._here(member, argument) for argument in service['command'])]

    def _environment(self, member: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(('FINETUNER_', 'JINA_AUTH'))}
        given = self.services[self.members[member]]['environment']
        here = {name: self._here(member, value) for name, value in given.items()}
        own = {
            'PYTHONPATH': str(ROOT),
            'OMP_NUM_THREADS': '1',
            'HF_HUB_OFFLINE': '1',
            'FINETUNER_DRILL': str(self.folder),
        }
        return {**kept, **here, **own, **self._variables}

    def _here(self, member: str, text: str) -> str:
        """What something in a container is on this machine."""
        text = text.replace('$$', '$')
        for name in self.services:
            replicas = [other for other, service in self.members.items() if service == name]
            addresses = '", "'.join(f'grpc://127.0.0.1:{self.ports[other]}' for other in replicas)
            text = text.replace(f'grpc://{name}:{GRPC}', addresses)
        service = self.services[self.members[member]]
        for volume in service.get('volumes', ()):
            text = text.replace(volume['target'], str(self._volume(member, volume['source'])))
        for secret in service.get('secrets', ()):
            source = self.content['secrets'][secret['source']]['file']
            text = text.replace(secret['target'], str(self.folder / source))
        return {GRPC: str(self.ports[member]), HTTP: str(self.http_port)}.get(text, text)

    def _volume(self, member: str, source: str) -> Path:
        """A volume that a service has for itself is one for each of its replicas."""
        service = self.members[member]
        own = source.startswith(f'{service}-') and member != f'{service}-0'
        return self.folder / 'volumes' / (f'{member}-{source}' if own else source)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])
