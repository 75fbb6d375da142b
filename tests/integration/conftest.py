"""Real services in processes of their own, and a model that is small enough to train in seconds."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from finetuner.client.channel import Channel
from finetuner.documents import DocumentArray
from registry import Registry
from tools.drill.model import tiny_model as write_tiny_model

ROOT = Path(__file__).parents[2]
FRUITS = ('apple', 'fig', 'pear', 'plum')
USE_OWN = object()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def clean_environment(**variables: Any) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(('FINETUNER_', 'JINA_AUTH'))}
    own = {'COLUMNS': '400', 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '2', 'JINA_OPTOUT_TELEMETRY': '1'}
    return {**kept, **own, **{name: str(value) for name, value in variables.items()}}


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f'{what}: not within {seconds} seconds'
        time.sleep(0.1)
    return value


class Service:
    """`jina flow --uses flows/<flow>` in a folder that is not the project's, and calls to it.

    :param variables: environment variables of the service.
    """

    def __init__(self, flow: str, folder: Path, **variables: Any):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / 'service.log'
        self.flow = ROOT / 'flows' / flow
        self.port, self.http_port = free_ports(2)
        self.environment = clean_environment(
            **{
                'FINETUNER_HOME': folder / 'home',
                'FINETUNER_CONFIG_DIR': folder / 'config',
                'FINETUNER_PORT': self.port,
                'FINETUNER_HTTP_PORT': self.http_port,
                'FINETUNER_MODEL_ROOTS': tempfile.gettempdir(),
                **variables,
            }
        )

    def start(self) -> 'Service':
        self.launch()
        try:
            wait_until(self._is_ready, 180, f'the start of {self.flow.name}')
        except BaseException:
            self.process.terminate()
            raise
        self.processes = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def launch(self) -> None:
        """Start it, without waiting until it is ready."""
        command = [Path(sys.executable).with_name('jina'), 'flow', '--uses', self.flow]
        with self.log.open('ab') as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.channel = Channel(f'grpc://127.0.0.1:{self.port}')

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-5000:]
        try:
            return requests.get(f'http://127.0.0.1:{self.http_port}/dry_run', timeout=5).json()['code'] == 0
        except (requests.ConnectionError, requests.Timeout):
            return False

    def stop(self) -> int:
        """End it as an operator would, and return the exit code; nothing of it may be left."""
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        _, alive = psutil.wait_procs(self.processes, 10)
        for process in alive:
            process.kill()
        assert not alive, f'left behind: {alive}'
        return code

    def kill(self) -> None:
        """kill -9 of the main process; the others end by themselves."""
        self.channel.close()
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not any(map(_is_alive, self.processes)), 15, f'the end of {self.processes}')

    def kill_all(self) -> None:
        """kill -9 of all of it but the workers."""
        self.channel.close()
        for process in [psutil.Process(self.process.pid), *self.processes]:
            process.kill()
        self.process.wait()

    def kill_workers(self) -> None:
        for process in psutil.process_iter(['cmdline']):
            command = process.info['cmdline'] or []
            if 'training.worker' in command and process.environ().get('FINETUNER_HOME') == str(self.folder / 'home'):
                process.kill()

    def process_of(self, executor: str) -> psutil.Process:
        """The process of an executor, which signs its lines of the log."""
        return psutil.Process(int(re.findall(rf'{executor}/rep-0@(\d+)', self.log.read_text())[-1]))

    def worker_of(self, run_name: str) -> psutil.Process:
        """The process that works on a run, once it does."""
        self.wait_for(run_name, 'STARTED')
        with Registry.open(self.folder / 'home') as registry:

            def find() -> psutil.Process | None:
                run = registry.get_run(registry.get_account().id, 'default', run_name)
                process = psutil.Process(int(run.worker.rpartition(':')[2]))
                # at first it is the service that has the run
                return process if 'training.worker' in process.cmdline() else None

            return wait_until(find, 60, f'the start of the worker of {run_name}')

    @property
    def token(self) -> str:
        return json.loads((self.folder / 'config' / 'credentials.json').read_text())['token']

    def post(self, endpoint: str, data: Any = (), token: Any = USE_OWN, **parameters: Any) -> requests.Response:
        """Over HTTP."""
        if token is USE_OWN:
            token = self.token
        if token is not None:
            parameters['token'] = token
        url = f'http://127.0.0.1:{self.http_port}{endpoint}'
        body = {'data': data if isinstance(data, dict) else list(data), 'parameters': parameters}
        return requests.post(url, json=body, timeout=120)

    def tags(self, endpoint: str, data: Any = (), **parameters: Any) -> dict[str, Any]:
        """The tags of the one document that answers over HTTP."""
        response = self.post(endpoint, data, **parameters)
        assert response.status_code == 200, response.text
        (document,) = response.json()['data']
        return document['tags']

    def call(self, endpoint: str, documents: Any = (), token: Any = USE_OWN, **parameters: Any) -> DocumentArray:
        """Over gRPC. Raises what the service raised."""
        from docarray.proto import DocListProto

        if token is USE_OWN:
            token = self.token
        if token is not None:
            parameters['token'] = token
        message = DocumentArray(documents).to_protobuf().SerializeToString()
        return DocumentArray.from_protobuf(DocListProto.FromString(self.channel.call(endpoint, parameters, message)))

    def ingest_fruits(self, name: str = 'fruits') -> None:
        self.tags('/ingest', fruits(), name=name, part=0)

    def fit(self, model: Path, run_name: str | None, **arguments: Any) -> dict[str, Any]:
        settings = {'train_data': 'fruits', 'epochs': 1, 'batch_size': 8, 'device': 'cpu', **arguments}
        return self.tags('/fit', model=str(model), run_name=run_name, **settings)

    def wait_for(self, run_name: str, *statuses: str, seconds: float = 180) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            run = self.tags('/status', run_name=run_name)
            return run if run['status'] in statuses else None

        return wait_until(reached, seconds, f'the run {run_name} becoming {" or ".join(statuses)}')


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def fruits() -> list[dict[str, Any]]:
    return [
        {'text': f'{fruit} {word}', 'tags': {'finetuner_label': fruit}}
        for fruit in FRUITS
        for word in ('pie', 'juice', 'tree', 'jam', 'cake', 'salad', 'tart', 'seed')
    ]


@pytest.fixture(scope='session')
def tiny_model(tmp_path_factory) -> Path:
    """The directory of a BERT with random weights that reads letters, 32 dimensions."""
    return write_tiny_model(tmp_path_factory.mktemp('tiny') / 'model')


@pytest.fixture(scope='session')
def service(tmp_path_factory, tiny_model):
    """`flows/finetuner.yml`, with the data set `fruits`."""
    folder = tmp_path_factory.mktemp('service')
    (folder / 'data').mkdir()
    service = Service(
        'finetuner.yml', folder, FINETUNER_ARTIFACT=tiny_model, FINETUNER_INGEST_ROOTS=folder / 'data'
    ).start()
    try:
        service.ingest_fruits()
        yield service
    finally:
        service.stop()


@pytest.fixture(scope='session')
def finished_run(service, tiny_model) -> dict[str, Any]:
    """A run of the service that has finished."""
    service.fit(tiny_model, 'finished', eval_data='fruits')
    run = service.wait_for('finished', 'FINISHED', 'FAILED')
    assert run['status'] == 'FINISHED', run['details'] + service.call('/logs', run_name='finished')[0].text
    return run


@pytest.fixture
def free_port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def run_python(tmp_path):
    """Run a script in a process and a folder of its own, and return all that it printed."""

    def run(script: str, *arguments: Any, **variables: Any) -> str:
        own = {'FINETUNER_HOME': tmp_path / 'home', 'FINETUNER_CONFIG_DIR': tmp_path / 'config', **variables}
        command = [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(script), *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=clean_environment(**own),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


@pytest.fixture
def start_service(tmp_path):
    """Start another service; it is stopped after the test."""
    services = []

    def start(flow: str, folder: Path = tmp_path, **variables: Any) -> Service:
        services.append(Service(flow, folder, **variables))
        return services[-1].start()

    yield start
    for service in services:
        if service.process.poll() is None:
            service.stop()
        service.kill_workers()
