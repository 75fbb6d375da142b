"""An exported deployment works: what its docker-compose file says is done here, without an engine.

Every service is started by the command line and with the variables that the file gives it. What an engine would do is
done by hand: volumes and secrets are folders and files of this machine, names of hosts are addresses of it, and since
all services share them, each has a port of its own.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from finetuner.client.channel import Channel
from finetuner.documents import Document
from finetuner.excepts import AuthenticationError
from tests.integration.conftest import ROOT, Service, clean_environment, free_ports, wait_until
from tests.integration.dockerfiles import variables

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent
GRPC, HTTP = '51000', '51001'


class Composed(Service):
    """The services of a docker-compose file."""

    def __init__(self, file: Path):
        self.folder = file.parent
        self.content = yaml.safe_load(file.read_text())
        self.services = self.content['services']
        self.ports = dict(zip(self.services, free_ports(len(self.services)), strict=True))
        self.port, (self.http_port,) = self.ports['gateway'], free_ports(1)
        self.running: dict[str, subprocess.Popen] = {}
        self.workdir = self.folder / 'workdir'
        self.workdir.mkdir()

    @property
    def token(self) -> str:
        return (self.folder / 'secrets' / 'token').read_text()

    def here(self, name: str, text: str) -> str:
        """What something in the container of a service is on this machine."""
        text = text.replace('$$', '$')
        for other, port in self.ports.items():
            text = text.replace(f'grpc://{other}:{GRPC}', f'grpc://127.0.0.1:{port}')
        text = text.replace(f'http://127.0.0.1:{HTTP}', f'http://127.0.0.1:{self.http_port}')
        for volume in self.services[name].get('volumes', ()):
            text = text.replace(volume['target'], str(self.folder / 'volumes' / volume['source']))
        for secret in self.services[name].get('secrets', ()):
            source = self.content['secrets'][secret['source']]['file']
            text = text.replace(secret['target'], str(self.folder / source))
        return {GRPC: str(self.ports[name]), HTTP: str(self.http_port)}.get(text, text)

    def command(self, name: str) -> list[str]:
        program, *arguments = [*self.services[name]['entrypoint'], *self.services[name]['command']]
        return [str(BIN / program), *(self.here(name, argument) for argument in arguments)]

    def variables(self, name: str) -> dict[str, str]:
        given = {**variables('Dockerfile'), **self.services[name]['environment']}
        assert [f'{given["HOME"]}:exec'] == self.services[name]['tmpfs'], 'nothing else can be written'
        home = self.folder / 'tmp' / name
        home.mkdir(parents=True, exist_ok=True)
        own = {'HOME': home, 'PATH': os.environ['PATH'], 'PYTHONPATH': ROOT}
        return clean_environment(**{key: self.here(name, value) for key, value in given.items()} | own)

    def start_one(self, name: str) -> None:
        for volume in self.services[name].get('volumes', ()):
            (self.folder / 'volumes' / volume['source']).mkdir(parents=True, exist_ok=True)
        with (self.folder / f'{name}.log').open('ab') as log:
            self.running[name] = subprocess.Popen(
                self.command(name), cwd=self.workdir, env=self.variables(name), stdout=log, stderr=subprocess.STDOUT
            )

    def is_healthy(self, name: str) -> bool:
        kind, program, *arguments = self.services[name]['healthcheck']['test']
        assert (kind, program) == ('CMD', 'python')
        assert self.running[name].poll() is None, self.log_of(name)
        with socket.socket() as probe:  # far cheaper than the check, and the machine is busy
            if probe.connect_ex(('127.0.0.1', self.http_port if name == 'gateway' else self.ports[name])) != 0:
                return False
        command = [sys.executable, *(self.here(name, argument) for argument in arguments)]
        done = subprocess.run(command, cwd=ROOT, env=self.variables(name), capture_output=True, check=False)
        return done.returncode == 0

    def start(self) -> 'Composed':
        """In the order of `depends_on`, each once those before it are healthy."""
        waiting = dict(self.services)
        while waiting:
            ready = [name for name, one in waiting.items() if not one.get('depends_on', {}).keys() & waiting.keys()]
            assert ready, f'these wait for each other: {list(waiting)}'
            for name in ready:
                self.start_one(name)
            for name in ready:
                wait_until(lambda name=name: self.is_healthy(name), 600, f'the health of {name}')
                del waiting[name]
        self.channel = Channel(f'grpc://127.0.0.1:{self.port}')
        return self

    def stop_one(self, name: str) -> int:
        """As an engine does: a SIGTERM, and then it has the time that the file gives it."""
        grace = int(self.services[name]['stop_grace_period'].removesuffix('s'))
        self.running[name].send_signal(signal.SIGTERM)
        return self.running.pop(name).wait(grace)

    def log_of(self, name: str) -> str:
        return (self.folder / f'{name}.log').read_text()[-5000:]

    def kill(self) -> None:
        for process in self.running.values():
            process.kill()


@pytest.fixture(scope='module')
def composed(tmp_path_factory, tiny_model):
    """flows/finetuner.yml as a deployment that serves a tiny model, and may train it."""
    folder = tmp_path_factory.mktemp('composed')
    flow = yaml.safe_load((ROOT / 'flows' / 'finetuner.yml').read_text())
    for executor in flow['executors']:
        if executor['name'] == 'trainer':
            executor['env'] = {'FINETUNER_MODEL_ROOTS': str(tiny_model)}
    (folder / 'flow.yml').write_text(yaml.safe_dump(flow))
    file = folder / 'docker-compose.yml'
    command = [BIN / 'finetuner', 'export', 'compose', folder / 'flow.yml', '--output', file]
    subprocess.run([*command, '--artifact', tiny_model, '--generate-secrets'], check=True)
    service = Composed(file)
    try:
        yield service.start()
    finally:
        service.kill()


def test_ingest_fit_and_encode_through_the_gateway(composed, tiny_model):
    assert set(composed.services) == {'gateway', 'dataset', 'clicks', 'trainer', 'encoder'}
    composed.ingest_fruits()
    composed.fit(tiny_model, 'exported', eval_data='fruits')
    run = composed.wait_for('exported', 'FINISHED', 'FAILED')
    assert run['status'] == 'FINISHED', run['details'] + composed.call('/logs', run_name='exported')[0].text
    assert composed.call('/metrics', run_name='exported')[0].tags['after']
    assert composed.call('/encode', [Document(text='plum')]).embeddings.shape == (1, 32)
    (document,) = composed.post('/encode', [{'text': 'plum'}]).json()['data']
    assert len(document['embedding']) == 32


def test_strangers_are_refused(composed):
    assert composed.post('/encode', [{'text': 'plum'}], token=None).status_code == 401
    with pytest.raises(AuthenticationError):
        composed.call('/encode', [Document(text='plum')], token=None)
    assert composed.token not in ''.join(map(composed.log_of, composed.services))


def test_nothing_is_written_beside_the_volumes(composed):
    """The file systems of the containers are read-only."""
    assert all(service['read_only'] for service in composed.services.values())
    assert list(composed.workdir.rglob('*')) == []


@pytest.mark.parametrize('name', ['gateway', 'encoder'])
def test_a_request_at_work_is_answered_although_its_server_was_told_to_end(composed, name):
    texts = [{'text': f'fruit number {number}'} for number in range(3000)]
    answers = []
    over_http = threading.Thread(target=lambda: answers.append(composed.post('/encode', texts).status_code))
    many = [Document(text=text['text']) for text in texts]
    over_grpc = threading.Thread(target=lambda: answers.append(composed.call('/encode', many).embeddings.shape))
    for thread in (over_http, over_grpc):
        thread.start()
    time.sleep(0.7)
    assert not answers, 'the requests are over before the signal: make them larger'
    assert composed.stop_one(name) == 0, composed.log_of(name)
    for thread in (over_http, over_grpc):
        thread.join()
    assert sorted(answers, key=str) == [(3000, 32), 200]
    composed.start_one(name)
    wait_until(lambda: composed.is_healthy(name), 600, f'the health of {name}')
    wait_until(lambda: composed.is_healthy('gateway'), 120, 'the health of the gateway')


def test_all_end_in_order(composed, tiny_model):
    composed.fit(tiny_model, 'cut-off', epochs=2000)
    composed.wait_for('cut-off', 'STARTED')
    start = time.monotonic()
    for name in ('gateway', 'encoder', 'dataset', 'clicks', 'trainer'):
        assert composed.stop_one(name) == 0, composed.log_of(name)
    assert time.monotonic() - start < 60
    assert composed.running == {}
