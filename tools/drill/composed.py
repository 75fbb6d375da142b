"""The services of a docker-compose file as processes of this machine.

Volumes and secrets are folders and files beside the file, names of hosts are addresses of this machine, and since all
services share them, each has a port of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

GRPC, HTTP = '51000', '51001'
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
OF_OTHERS = ('FINETUNER_', 'JINA_AUTH')  # variables of this process that are none of the services'


class Composed:
    """Starts and ends one process at a time, by the command line and with the variables that its container would have.

    :param file: the compose file.
    :param image: the environment of the image, default none.
    :param variables: are of all services, whatever the file gives them.
    """

    def __init__(self, file: Path, image: Mapping[str, str] = MappingProxyType({}), **variables: str):
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
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.workdir = self.folder / 'workdir'
        self.workdir.mkdir(exist_ok=True)
        self._image, self._variables = image, variables

    @property
    def port(self) -> int:
        """Of the gateway, by gRPC."""
        return self.ports['gateway-0']

    def start_one(self, member: str) -> None:
        for volume in self._service(member).get('volumes', ()):
            self.volume(member, volume['source']).mkdir(parents=True, exist_ok=True)
        with (self.folder / f'{member}.log').open('ab') as log:
            self.running[member] = subprocess.Popen(
                self._command(member),
                cwd=self.workdir,
                env=self.environment(member),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop_one(self, member: str) -> int:
        """SIGTERM, and SIGKILL after the time that the file gives, as an engine does. Returns the exit code."""
        process = self.running.pop(member)
        process.terminate()
        grace = int(self._service(member)['stop_grace_period'].removesuffix('s'))
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def is_healthy(self, member: str) -> bool:
        """What the health check of the file says."""
        kind, program, *arguments = self._service(member)['healthcheck']['test']
        assert (kind, program) == ('CMD', 'python')
        with socket.socket() as probe:  # far cheaper than the check, and the machine is busy
            port = self.http_port if self.members[member] == 'gateway' else self.ports[member]
            if probe.connect_ex(('127.0.0.1', port)) != 0:
                return False
        command = [sys.executable, *(self._here(member, argument) for argument in arguments)]
        return subprocess.run(command, cwd=ROOT, env=self.environment(member), capture_output=True).returncode == 0

    def log_of(self, member: str) -> str:
        """The end of what it has printed."""
        return (self.folder / f'{member}.log').read_text()[-5000:]

    def environment(self, member: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_OTHERS)}
        given = {**self._image, **self._service(member)['environment']}
        here = {name: self._here(member, value) for name, value in given.items()}
        home = self.folder / 'tmp' / member  # nothing but the volumes and /tmp can be written in a container
        home.mkdir(parents=True, exist_ok=True)
        own = {'HOME': str(home), 'PATH': os.environ['PATH'], 'PYTHONPATH': str(ROOT)}
        return {**kept, **here, **own, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', **self._variables}

    def volume(self, member: str, source: str) -> Path:
        """A volume that a service has for itself is one for each of its replicas."""
        service = self.members[member]
        own = source.startswith(f'{service}-') and member != f'{service}-0'
        return self.folder / 'volumes' / (f'{member}-{source}' if own else source)

    def _service(self, member: str) -> dict[str, Any]:
        service: dict[str, Any] = self.services[self.members[member]]
        return service

    def _command(self, member: str) -> list[str]:
        [program] = self._service(member)['entrypoint']
        return [str(BIN / program), *(self._here(member, argument) for argument in self._service(member)['command'])]

    def _here(self, member: str, text: str) -> str:
        """What something in a container is on this machine."""
        text = text.replace('$$', '$')
        for name in self.services:
            replicas = [other for other, service in self.members.items() if service == name]
            addresses = '", "'.join(f'grpc://127.0.0.1:{self.ports[other]}' for other in replicas)
            text = text.replace(f'grpc://{name}:{GRPC}', addresses)
        text = text.replace(f'http://127.0.0.1:{HTTP}', f'http://127.0.0.1:{self.http_port}')
        for volume in self._service(member).get('volumes', ()):
            text = text.replace(volume['target'], str(self.volume(member, volume['source'])))
        for secret in self._service(member).get('secrets', ()):
            source = self.content['secrets'][secret['source']]['file']
            text = text.replace(secret['target'], str(self.folder / source))
        return {GRPC: str(self.ports[member]), HTTP: str(self.http_port)}.get(text, text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])
