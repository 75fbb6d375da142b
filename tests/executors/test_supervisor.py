"""The supervisor on a real registry, with real worker processes."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from sqlalchemy import update

from executors import supervisor as supervisor_module
from executors.supervisor import Supervisor
from finetuner.documents import Document
from registry import Registry, RunRecord
from registry.models import RunRow

LOGGER = logging.getLogger('supervisor-test')


@pytest.fixture
def registry(tmp_path):
    with Registry.open(tmp_path / 'home') as registry:
        yield registry


@pytest.fixture
def supervise(registry):
    supervisors = []

    def start(logger=LOGGER, **options) -> Supervisor:
        supervisors.append(Supervisor(registry, logger, **options))
        supervisors[-1].start()
        return supervisors[-1]

    yield start
    for supervisor in supervisors:
        supervisor.close()


def make_run(registry: Registry, name: str, **config) -> RunRecord:
    account = registry.get_account()
    documents = [Document(id=str(i), text=f'text {i}', tags={'finetuner_label': i % 2}) for i in range(8)]
    registry.append_documents(account.id, 'data', documents, part=0)
    settings = {'model': 'all-minilm-l6-v2', 'train_data': 'data', 'device': 'cpu', 'batch_size': 8, **config}
    run, _ = registry.create_run(account.id, 'default', name, settings, datasets=['data'])
    return run


def age(registry: Registry, run: RunRecord, seconds: float) -> None:
    """Make the last sign of life of a run's worker older."""
    with registry.database.write() as session:
        then = datetime.now(UTC) - timedelta(seconds=seconds)
        session.execute(update(RunRow).where(RunRow.id == run.id).values(heartbeat_at=then))


def wait_for(registry: Registry, run: RunRecord, *statuses: str, seconds: float = 60) -> RunRecord:
    deadline = time.monotonic() + seconds
    while (found := registry.get_run_by_id(run.id)).status not in statuses:
        assert time.monotonic() < deadline, f'{found.status}: {found.details}'
        time.sleep(0.05)
    return found


def test_a_run_whose_worker_is_gone_is_failed_at_the_start(registry, supervise):
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    run = make_run(registry, 'lost')
    assert registry.start_run(run.id, f'{socket.gethostname()}:{gone.pid}')
    supervise()
    assert f'The worker process {gone.pid} is gone' in wait_for(registry, run, 'FAILED', seconds=10).details


def test_a_run_whose_worker_lives_is_left_alone_until_it_is_silent(registry, supervise):
    """Of another machine nothing but the signs of life are known."""
    here, elsewhere = make_run(registry, 'here'), make_run(registry, 'elsewhere')
    registry.start_run(here.id, f'{socket.gethostname()}:{os.getpid()}')
    registry.start_run(elsewhere.id, 'another-machine:1')
    supervise(heartbeat_timeout=60)
    time.sleep(2.5)
    assert registry.get_run_by_id(here.id).status == 'STARTED'
    assert registry.get_run_by_id(elsewhere.id).status == 'STARTED'
    age(registry, here, 61)
    age(registry, elsewhere, 3600)
    assert 'has not been heard of for 6' in wait_for(registry, here, 'FAILED', seconds=10).details
    assert 'another-machine:1 has not been heard of' in wait_for(registry, elsewhere, 'FAILED', seconds=10).details


def test_a_worker_that_hangs_is_killed_and_its_run_failed(registry, supervise):
    run = make_run(registry, 'hangs', epochs=1_000_000)
    supervise(heartbeat_timeout=15)
    pid = int(wait_for(registry, run, 'STARTED').worker.rpartition(':')[2])
    os.kill(pid, signal.SIGSTOP)
    assert 'has not been heard of' in wait_for(registry, run, 'FAILED').details
    deadline = time.monotonic() + 10
    while os.path.exists(f'/proc/{pid}'):  # noqa: PTH110
        assert time.monotonic() < deadline, 'the worker is still there'
        time.sleep(0.05)


def test_a_worker_that_cannot_even_start_fails_its_run(registry, supervise, monkeypatch, tmp_path):
    (tmp_path / 'sqlalchemy.py').write_text('raise ImportError("broken installation")')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    run = make_run(registry, 'unstartable')
    supervise()
    details = wait_for(registry, run, 'FAILED').details
    assert 'ended with exit code 1' in details
    assert 'The last line of its log: ImportError: broken installation' in details


def test_closing_ends_the_worker_and_keeps_what_waits(registry, supervise):
    first, second = make_run(registry, 'first', epochs=1_000_000), make_run(registry, 'second')
    supervisor = supervise()
    pid = int(wait_for(registry, first, 'STARTED').worker.rpartition(':')[2])
    supervisor.close()
    assert not os.path.exists(f'/proc/{pid}')  # noqa: PTH110
    assert registry.get_run_by_id(first.id).details == 'The service was stopped while the run was at work'
    assert registry.get_run_by_id(second.id).status == 'CREATED'


def worker_processes():
    """Other tests of this session may have children of their own."""
    return [child for child in psutil.Process().children() if 'training.worker' in child.cmdline()]


def test_closing_while_a_worker_starts_keeps_the_run(registry, supervise):
    run = make_run(registry, 'starting')
    supervisor = supervise()
    while not (workers := worker_processes()):
        time.sleep(0.01)
    supervisor.close()
    assert not any(worker.is_running() for worker in workers)
    assert registry.get_run_by_id(run.id).status == 'CREATED'


def test_of_two_services_on_one_home_one_works_on_a_run_and_the_other_does_it_no_harm(registry, supervise, caplog):
    caplog.set_level(logging.INFO)
    run = make_run(registry, 'shared', epochs=1_000_000)
    # both start a worker, one of which is beaten
    supervisors = {name: supervise(logging.getLogger(name)) for name in ('first', 'second')}
    worker = psutil.Process(int(wait_for(registry, run, 'STARTED').worker.rpartition(':')[2]))
    deadline = time.monotonic() + 30
    while not (beaten := [record.name for record in caplog.records if 'another worker has it' in record.message]):
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.05)
    assert 'elsewhere' not in (registry.run_directory(run.id) / 'log.txt').read_text()
    supervisors[beaten[0]].close()
    assert worker.is_running()
    assert registry.get_run_by_id(run.id).status == 'STARTED'


def test_closing_leaves_alone_a_run_whose_worker_is_anothers(registry, supervise):
    """Even while its own worker for the same run still starts."""
    run = make_run(registry, 'taken')
    supervisor = supervise()
    while not worker_processes():
        time.sleep(0.01)
    assert registry.start_run(run.id, 'another-machine:1')
    supervisor.close()
    assert registry.get_run_by_id(run.id).status == 'STARTED'


def test_a_folder_of_the_same_name_in_the_working_directory_does_no_harm(registry, supervise, monkeypatch, tmp_path):
    (tmp_path / 'training').mkdir()
    (tmp_path / 'training' / '__init__.py').write_text('raise RuntimeError("the wrong one")')
    monkeypatch.chdir(tmp_path)
    run = make_run(registry, 'elsewhere')
    supervise()
    run = wait_for(registry, run, 'STARTED', 'FAILED')
    assert run.status == 'STARTED', run.details


CHECKPOINT = [{'name': 'TrainingCheckpoint', 'options': {}}]


@pytest.mark.slow
def test_a_cancelled_run_leaves_a_checkpoint_and_goes_on_from_it(registry, supervise):
    run = make_run(registry, 'cancelled', epochs=1_000_000, callbacks=CHECKPOINT)
    supervise()
    log = registry.run_directory(run.id) / 'log.txt'
    pid = int(wait_for(registry, run, 'STARTED').worker.rpartition(':')[2])
    wait_until(lambda: 'Checkpoint' in log.read_text())
    assert registry.cancel_run(run.id, 'Cancelled by a test')
    wait_until(lambda: not os.path.exists(f'/proc/{pid}'))  # noqa: PTH110
    assert registry.get_run_by_id(run.id).details == 'Cancelled by a test'
    folder = registry.run_directory(run.id)
    assert len(list(folder.glob('checkpoints/step-*'))) == 1 and not (folder / 'work').exists()
    assert 'Failed' not in log.read_text()

    assert registry.resume_run(run.id)
    assert int(wait_for(registry, run, 'STARTED').worker.rpartition(':')[2]) != pid
    wait_until(lambda: 'Going on from step' in log.read_text())


@pytest.mark.slow
def test_a_run_that_is_resumed_while_its_worker_still_ends_is_not_failed(registry, supervise):
    run = make_run(registry, 'hasty', epochs=1_000_000)
    supervise()
    worker = wait_for(registry, run, 'STARTED').worker
    wait_until(lambda: 'Training data' in (registry.run_directory(run.id) / 'log.txt').read_text())
    registry.cancel_run(run.id, 'Cancelled by a test')
    registry.resume_run(run.id)
    wait_until(lambda: registry.get_run_by_id(run.id).worker != worker)
    assert registry.get_run_by_id(run.id).status == 'STARTED'


def test_a_worker_that_does_not_heed_the_end_of_its_run_is_killed(registry, supervise, monkeypatch):
    monkeypatch.setattr(supervisor_module, 'CANCEL_GRACE', 1.0)
    run = make_run(registry, 'stubborn', epochs=1_000_000)
    supervise()
    pid = int(wait_for(registry, run, 'STARTED').worker.rpartition(':')[2])
    os.kill(pid, signal.SIGSTOP)
    registry.cancel_run(run.id, 'Cancelled by a test')
    wait_until(lambda: not os.path.exists(f'/proc/{pid}'))  # noqa: PTH110
    assert registry.get_run_by_id(run.id).status == 'CANCELLED'


def wait_until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
