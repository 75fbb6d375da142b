"""A run of the registry, worked on by a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from finetuner.data import read_csv
from registry import Registry
from registry.queue import Machine, Resources
from training import heartbeat, pipeline, worker
from training.interruption import Interruption
from training.shared_checkpoints import pack
from training.worker import PASSING, TAKEN


@pytest.fixture
def registry(train_csv, test_csv):
    with Registry.open() as registry:
        account = registry.get_account()
        registry.append_documents(account.id, 'train', read_csv(train_csv))
        registry.append_documents(account.id, 'test', read_csv(test_csv))
        yield registry


def create_run(registry, **config):
    account = registry.get_account()
    config = {'train_data': 'train', 'eval_data': 'test', 'epochs': 1.0, 'batch_size': 24, 'device': 'cpu'} | config
    run, _ = registry.create_run(account.id, 'default', 'first', config, '', ['train', 'test'])
    return run


def work(run) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'training.worker', run.id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_run_is_worked_on_once(registry, word_model):
    run = create_run(registry, model=str(word_model))
    result = work(run)
    assert result.returncode == 0, result.stdout
    finished = registry.get_run_by_id(run.id)
    assert finished.status == 'FINISHED'
    assert finished.metrics['after']['average_precision'] > 0
    assert finished.examples['after']
    assert finished.worker
    done = {'stage': 'Finished', 'step': 1, 'steps': 1, 'epoch': 1, 'epochs': 1}
    assert finished.progress.items() >= done.items() and finished.progress['loss'] > 0
    artifact = registry.get_artifact(run.account_id, run.artifact_id)
    assert (artifact.name, registry.artifact_file(artifact).stat().st_size) == ('first', artifact.size)
    for line in ('Training data: 120 items of 6 classes', 'Training [1/1]', "Metric: 'average_precision'", 'Finished'):
        assert line in result.stdout

    again = work(run)
    assert (again.returncode, again.stdout) == (TAKEN, '')
    assert registry.get_run_by_id(run.id) == finished


def test_a_run_that_fails_says_why(registry, tmp_path):
    run = create_run(registry, model=str(tmp_path / 'no-such-model'))
    result = work(run)
    assert result.returncode == 1
    failed = registry.get_run_by_id(run.id)
    assert failed.status == 'FAILED'
    assert 'no-such-model' in failed.details
    assert '\n' not in failed.details
    assert 'Traceback' in result.stdout


def test_a_database_that_cannot_be_used_is_not_described_in_the_log_of_a_run(monkeypatch, tmp_path):
    (tmp_path / 'folder.db').mkdir()
    monkeypatch.setenv('FINETUNER_DATABASE_URL', f'sqlite:///{tmp_path}/folder.db')
    result = subprocess.run(
        [sys.executable, '-m', 'training.worker', 'run', 'lease'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == PASSING
    assert str(tmp_path) not in result.stdout and 'Traceback' not in result.stdout
    assert 'The registry cannot be opened' in result.stdout


def test_an_outage_is_told_once_and_without_its_cause(monkeypatch, caplog):
    monkeypatch.setattr(heartbeat, 'SECONDS', 0.01)
    beats = []

    class Away:
        def heartbeat(self, *_):
            beats.append(1)
            raise ConnectionError('connection to server at "10.0.0.7", user "finetuner" failed')

    with heartbeat.Heartbeat(Away(), 'run', 'lease', 'host:1').beating():
        while len(beats) < 5:
            time.sleep(0.01)
    assert [record.message for record in caplog.records] == ['The registry does not answer: going on without it']
    assert '10.0.0.7' not in caplog.text


@pytest.mark.parametrize('state', ['whole', 'lost', 'damaged'])
def test_a_shared_checkpoint_that_cannot_be_used_is_done_without(tmp_path, monkeypatch, caplog, state):
    with Registry.open(objects_url=f'file://{tmp_path}/objects') as registry:
        monkeypatch.setenv('FINETUNER_SHARE_CHECKPOINTS', '1')
        account = registry.get_account()
        run, _ = registry.create_run(account.id, 'default', 'run', {'model': 'm', 'train_data': 't'})
        lease = registry.claim_run('host:1', [Machine(Resources(1), Resources(1))]).lease
        own = registry.run_directory(run.id) / 'checkpoints' / 'step-000000001'
        own.mkdir(parents=True)

        def store(name):
            for part in ('tensors.safetensors', 'state.json'):
                (own / part).write_text(part)
            registry.store_checkpoint(run.id, lease, name, pack(own, tmp_path / 'packed.zip'))
            return tmp_path / 'objects' / registry.find_checkpoint(run.id).key

        stored = store('step-000000002')
        stored.chmod(0o640)
        if state == 'lost':
            stored.unlink()
        elif state == 'damaged':
            stored.write_bytes(b'damaged')
        begun = []
        monkeypatch.setattr(pipeline, 'run_fit', lambda *arguments, **options: begun.append(options) or sys.exit())
        life = heartbeat.Heartbeat(registry, run.id, lease, 'host:1')
        with pytest.raises(SystemExit):
            worker.work(registry, registry.get_run_by_id(run.id), life, Interruption())
        assert begun
        kept = [path.name for path in own.parent.iterdir()]
        assert kept == ['step-000000002' if state == 'whole' else 'step-000000001']
        assert ('going on without it' in caplog.text) == (state != 'whole')
        if state != 'whole':
            assert store('step-000000003').exists(), 'one after it takes its place'
