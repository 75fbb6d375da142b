"""The supervisor on a real registry, with real worker processes."""

import logging
import os
import threading
import time

import psutil
import pytest

from executors import supervisor as supervisor_module
from executors.supervisor import Supervisor
from finetuner.documents import Document
from registry import Registry, RunRecord
from registry.queue import Machine, Resources
from training.launchers import guard
from training.launchers.attempt import Policy
from training.launchers.local import LocalLauncher
from training.launchers.tidying import tidy

LOGGER = logging.getLogger('supervisor-test')
QUICK = Policy(max_retries=1, retry_delay=0.1)
FOR_EVER = 1_000_000  # epochs
MACHINE = [Machine(Resources(9), Resources(9))]


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor_module, 'INTERVAL', 0.2)
    with Registry.open(tmp_path / 'home') as registry:
        yield registry


@pytest.fixture
def supervise(registry):
    supervisors = []

    def start(logger=LOGGER, policy=QUICK, slots=1, gpus=(), **options) -> Supervisor:
        launcher = LocalLauncher(registry, logger, slots, gpus, policy)
        supervisors.append(Supervisor(registry, logger, launcher, policy, **options))
        supervisors[-1].start()
        return supervisors[-1]

    yield start
    for supervisor in supervisors:
        supervisor.close()


@pytest.fixture
def submit(registry, tiny_model):
    def make(name: str, **config) -> RunRecord:
        account = registry.get_account()
        documents = [Document(id=str(i), text=f'text {i}', tags={'finetuner_label': i % 2}) for i in range(8)]
        registry.append_documents(account.id, 'data', documents, part=0)
        settings = {'model': str(tiny_model), 'train_data': 'data', 'device': 'cpu', 'batch_size': 8, **config}
        return registry.create_run(account.id, 'default', name, settings, datasets=['data'])[0]

    return make


def wait_until(condition, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def wait_for(registry: Registry, run: RunRecord, *statuses: str, seconds: float = 180) -> RunRecord:
    deadline = time.monotonic() + seconds
    while (found := registry.get_run_by_id(run.id)).status not in statuses:
        assert time.monotonic() < deadline, f'{found.status}: {found.details}'
        time.sleep(0.05)
    return found


def log_of(registry: Registry, run: RunRecord) -> str:
    return registry.read_log(run.id, 0, 1 << 20).decode()


def worker_of(registry: Registry, run: RunRecord, lease: str | None = None) -> psutil.Process:
    """The process that works on a run; that of another lease than `lease`, once it does."""

    def find() -> psutil.Process | None:
        found = registry.get_run_by_id(run.id)
        if found.status != 'STARTED' or found.lease == lease:
            return None
        process = psutil.Process(int(found.worker.rpartition(':')[2]))
        return process if process.pid != os.getpid() else None  # it has told its name

    return wait_until(find)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_followed_by_another_and_at_last_the_run_has_failed(registry, supervise, submit):
    run = submit('killed', epochs=FOR_EVER)
    supervise()
    first = worker_of(registry, run)
    lease = registry.get_run_by_id(run.id).lease
    first.kill()
    second = worker_of(registry, run, lease)
    assert not first.is_running()
    assert registry.get_run_by_id(run.id).attempts == 2
    wait_until(lambda: 'Training data' in log_of(registry, run))
    second.kill()
    failed = wait_for(registry, run, 'FAILED')
    assert 'The worker process was killed by SIGKILL. The last line of its log: ' in failed.details
    assert failed.details.endswith(' (attempt 2 of 2)')
    assert list((registry.home / 'attempts').iterdir()) == []


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_after_a_kill_and_ends_as_if_nothing_had_been(
    registry, supervise, submit, monkeypatch
):
    """Nobody gave it a TrainingCheckpoint."""
    monkeypatch.setenv('FINETUNER_CHECKPOINT_SECONDS', '0.01')
    run, alone = submit('killed', epochs=20), submit('alone', epochs=20)
    supervise(slots=2)
    folder = registry.run_directory(run.id) / 'checkpoints'
    worker, lease = worker_of(registry, run), registry.get_run_by_id(run.id).lease
    wait_until(lambda: list(folder.glob('step-*')))
    worker.kill()
    worker_of(registry, run, lease)
    finished = wait_for(registry, run, 'FINISHED')
    wait_for(registry, alone, 'FINISHED')
    assert 'Going on from step' in log_of(registry, run)
    assert weights_of(registry, finished) == weights_of(registry, registry.get_run_by_id(alone.id))
    wait_until(lambda: not folder.exists())  # after the end of the run is known


def weights_of(registry: Registry, run: RunRecord) -> bytes:
    import zipfile

    artifact = registry.artifact_file(registry.get_artifact(run.account_id, run.artifact_id))
    with zipfile.ZipFile(artifact) as zipped:
        [name] = [name for name in zipped.namelist() if name.endswith('model.safetensors')]
        return zipped.read(name)


def test_a_run_whose_worker_is_silent_is_given_to_another(registry, supervise, submit):
    """Of a worker on another machine nothing but the signs of life are known."""
    run = submit('elsewhere', epochs=FOR_EVER)
    taken = registry.claim_run('another-machine:1', MACHINE)
    started = time.monotonic()
    supervise(heartbeat_timeout=3, policy=Policy(max_retries=1, retry_delay=3))
    while time.monotonic() - started < 4:
        assert registry.heartbeat(run.id, None, taken.lease)
        time.sleep(0.5)
    waiting = wait_for(registry, run, 'CREATED', seconds=60)
    assert waiting.details == (
        'The worker another-machine:1 has not been heard of for 3 seconds. '
        'Attempt 2 of 2 goes on from the last checkpoint'
    )
    wait_until(lambda: registry.get_run_by_id(run.id).lease not in (None, taken.lease))
    assert not registry.heartbeat(run.id, None, taken.lease)


def test_a_database_that_is_away_is_no_silence_of_the_workers(registry, supervise, submit, monkeypatch):
    run = submit('patient', epochs=FOR_EVER)
    taken = registry.claim_run('another-machine:1', MACHINE)
    supervisor = supervise(heartbeat_timeout=3)
    wait_until(lambda: supervisor._signs)

    def fail():
        raise ConnectionError('the database is away')

    with monkeypatch.context() as away:
        away.setattr(registry, 'leases', fail)
        time.sleep(4)
    time.sleep(1)
    assert registry.heartbeat(run.id, None, taken.lease)
    assert registry.get_run_by_id(run.id).lease == taken.lease


class NoLauncher:
    """Has nothing to work with, and notes which workers it is to end."""

    def __init__(self):
        self.ended = []

    def machines(self):
        return []

    def run_ids(self):
        return set()

    def lost(self, lease):
        self.ended.append(lease)
        return True

    def adopt(self): ...

    def look(self): ...

    def close(self): ...


def test_writers_that_are_locked_out_are_no_silence_of_the_workers(registry, submit):
    """A backup lets nobody write, and everybody read."""
    run = submit('patient', epochs=FOR_EVER)
    taken = registry.claim_run('this-machine:1', MACHINE)
    launcher, is_hung = NoLauncher(), threading.Event()

    def beat():
        while not is_hung.wait(0.2):
            registry.heartbeat(run.id, None, taken.lease)

    worker = threading.Thread(target=beat)
    supervisor = Supervisor(registry, LOGGER, launcher, QUICK, heartbeat_timeout=2)
    worker.start()
    supervisor.start()
    wait_until(lambda: supervisor._signs)
    with registry.database.without_writers():
        time.sleep(4)
    time.sleep(1)
    assert launcher.ended == []
    is_hung.set()
    worker.join()
    wait_until(lambda: launcher.ended)
    supervisor.close()
    assert set(launcher.ended) == {taken.lease}


def test_a_run_whose_trainer_was_lost_before_its_worker_began_has_lost_no_attempt(registry, supervise, submit):
    run = submit('unlucky', max_retries=0, epochs=FOR_EVER)
    taken = registry.claim_run('another-machine:1', MACHINE)
    supervise(heartbeat_timeout=0.5)
    wait_until(lambda: registry.get_run_by_id(run.id).lease not in (None, taken.lease))
    assert registry.get_run_by_id(run.id).attempts == 1


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_and_followed_by_another(registry, supervise, submit):
    run = submit('hangs', epochs=FOR_EVER)
    supervise(heartbeat_timeout=20)
    worker, lease = worker_of(registry, run), registry.get_run_by_id(run.id).lease
    worker.suspend()
    worker_of(registry, run, lease)
    assert not worker.is_running()


def test_a_worker_that_cannot_even_start_fails_its_run(registry, supervise, submit, monkeypatch, tmp_path):
    (tmp_path / 'sqlalchemy.py').write_text('raise ImportError("broken installation")')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    run = submit('unstartable')
    supervise()
    details = wait_for(registry, run, 'FAILED').details
    assert 'ended with exit code 1' in details
    assert 'The last line of its log: ImportError: broken installation (attempt 2 of 2)' in details
    assert log_of(registry, run).count('Traceback') == 2


@pytest.mark.slow
def test_a_run_that_fails_by_itself_is_not_tried_again(registry, supervise, submit):
    run = submit('wrong', model='/no/such/model')
    supervise()
    assert wait_for(registry, run, 'FAILED').attempts == 1


@pytest.mark.slow
def test_closing_ends_the_worker_and_its_run_waits(registry, supervise, submit):
    first, second = submit('first', epochs=FOR_EVER, max_retries=0), submit('second')
    supervisor = supervise()
    worker = worker_of(registry, first)
    wait_until(lambda: registry.get_run_by_id(first.id).progress.get('epoch'))
    supervisor.close()
    assert not worker.is_running()
    waiting = registry.get_run_by_id(first.id)
    assert (waiting.status, waiting.details, waiting.attempts) == ('CREATED', guard.STOPPED, 0)
    assert list(registry.run_directory(first.id).glob('checkpoints/step-*'))
    assert registry.get_run_by_id(second.id).status == 'CREATED'
    supervise()
    wait_until(lambda: 'Going on from step' in log_of(registry, first))


def worker_processes():
    """Other tests of this session may have children of their own."""
    return [child for child in psutil.Process().children() if 'training.worker' in child.cmdline()]


def test_closing_while_a_worker_starts_keeps_the_run(registry, supervise, submit):
    run = submit('starting')
    supervisor = supervise()
    workers = wait_until(worker_processes)
    supervisor.close()
    assert not any(worker.is_running() for worker in workers)
    assert registry.get_run_by_id(run.id).status == 'CREATED'


def test_of_two_services_on_one_home_one_works_on_a_run_and_the_other_does_it_no_harm(registry, supervise, submit):
    run = submit('shared', epochs=FOR_EVER)
    supervisors = [supervise(logging.getLogger(name), heartbeat_timeout=60) for name in ('first', 'second')]
    worker = worker_of(registry, run)
    assert len(worker_processes()) == 1
    idle = [one for one in supervisors if not one._launcher.run_ids()]
    assert len(idle) == 1
    idle[0].close()
    assert worker.is_running()
    assert registry.get_run_by_id(run.id).status == 'STARTED'


def test_a_folder_of_the_same_name_in_the_working_directory_does_no_harm(
    registry, supervise, submit, monkeypatch, tmp_path
):
    (tmp_path / 'training').mkdir()
    (tmp_path / 'training' / '__init__.py').write_text('raise RuntimeError("the wrong one")')
    monkeypatch.chdir(tmp_path)
    run = submit('elsewhere', epochs=FOR_EVER)
    supervise()
    worker_of(registry, run)


def test_a_worker_that_does_not_heed_the_end_of_its_run_is_killed(registry, supervise, submit, monkeypatch):
    monkeypatch.setattr(guard, 'CANCEL_GRACE', 1.0)
    run = submit('stubborn', epochs=FOR_EVER)
    supervise()
    worker = worker_of(registry, run)
    worker.suspend()
    registry.cancel_run(run.id, 'Cancelled by a test')
    wait_until(lambda: not worker.is_running())
    assert registry.get_run_by_id(run.id).status == 'CANCELLED'
    wait_until(lambda: registry.get_run_by_id(run.id).lease is None)


@pytest.mark.slow
def test_a_cancelled_run_leaves_a_checkpoint_and_goes_on_from_it(registry, supervise, submit):
    run = submit('cancelled', epochs=FOR_EVER)
    supervise()
    worker = worker_of(registry, run)
    wait_until(lambda: registry.get_run_by_id(run.id).progress.get('epoch'))
    assert registry.cancel_run(run.id, 'Cancelled by a test')
    registry.resume_run(run.id)  # while its worker still ends
    assert registry.get_run_by_id(run.id).lease is not None
    second = worker_of(registry, run, registry.get_run_by_id(run.id).lease)
    assert second.pid != worker.pid and not worker.is_running()
    wait_until(lambda: 'Going on from step' in log_of(registry, run))
    assert registry.get_run_by_id(run.id).attempts == 1


def test_a_run_that_takes_more_memory_than_it_may_has_failed_and_says_what_would_fit(registry, supervise, submit):
    run = submit('large', epochs=FOR_EVER, memory_limit=150_000_000)  # torch alone takes more
    supervise()
    failed = wait_for(registry, run, 'FAILED')
    assert failed.details.startswith('Out of memory: ')
    assert 'of 150 MB that its memory_limit allows' in failed.details
    assert failed.attempts == 1


@pytest.mark.slow
def test_a_run_that_takes_longer_than_the_service_allows_has_failed_and_can_go_on(registry, supervise, submit):
    run = submit('long', epochs=FOR_EVER)
    supervise(policy=Policy(max_seconds=25))
    worker = worker_of(registry, run)
    failed = wait_for(registry, run, 'FAILED')
    assert failed.details == 'The run took longer than the 25 seconds that this service allows it'
    assert not worker.is_running()


def test_each_gpu_is_one_runs_at_a_time(registry, supervise, submit):
    """The machine needs none: what is seen is what the workers are told."""
    runs = [submit(f'run{number}', epochs=FOR_EVER, device='cuda', cpus=1) for number in range(3)]
    runs.append(submit('without', epochs=FOR_EVER))
    supervise(slots=1, gpus=('4', '7'))
    workers = [worker_of(registry, run).environ() for run in (runs[0], runs[1], runs[3])]
    assert sorted(worker['CUDA_VISIBLE_DEVICES'] for worker in workers) == ['', '4', '7']
    assert workers[0]['OMP_NUM_THREADS'] == '1'
    assert registry.get_run_by_id(runs[2].id).status == 'CREATED'


@pytest.mark.slow
def test_several_processes_share_the_work_of_a_run_and_end_together(registry, supervise, submit):
    run = submit('shared', epochs=FOR_EVER, device='cuda', gpus=2)
    supervise(gpus=('0', '1'))
    wait_until(lambda: 'Training on 2 processes' in log_of(registry, run), 120)
    worker = worker_of(registry, run)
    parent = worker.parent()
    assert len(parent.children()) == 2
    wait_until(lambda: registry.get_run_by_id(run.id).progress.get('epoch'))
    registry.cancel_run(run.id, 'Cancelled by a test')
    wait_until(lambda: not parent.is_running())
    assert len(list(registry.run_directory(run.id).glob('checkpoints/step-*'))) == 1
    registry.resume_run(run.id)
    wait_until(lambda: 'Going on from step' in log_of(registry, run), 120)
    worker = worker_of(registry, run)
    lease = registry.get_run_by_id(run.id).lease
    [other] = [child for child in worker.parent().children() if child.pid != worker.pid]
    other.kill()  # not the one that speaks for all
    worker_of(registry, run, lease)
    assert 'goes on' not in registry.get_run_by_id(run.id).details


def test_what_a_run_left_here_goes_when_it_was_deleted_or_finished_elsewhere(registry, submit, tmp_path):
    finished, deleted, waiting = (submit(name) for name in ('finished', 'deleted', 'waiting'))
    (tmp_path / 'a.zip').write_bytes(b'zip')
    registry.start_run(finished.id, 'elsewhere:1')
    registry.finish_run(finished.id, tmp_path / 'a.zip', {}, {})
    registry.delete_run(deleted.account_id, 'default', 'deleted')
    folders = {run.name: registry.run_directory(run.id) for run in (finished, deleted, waiting)}

    def fill(age: float) -> dict[str, list[str]]:
        for folder in folders.values():
            (folder / 'checkpoints' / 'step-000000001').mkdir(parents=True, exist_ok=True)
            if folder == folders['finished']:
                (folder / 'shared').mkdir(exist_ok=True)
                (folder / 'finished.zip').write_bytes(b'an artifact that was not stored from here')
            os.utime(folder, (time.time() - age, time.time() - age))
        tidy(registry)
        return {name: [path.name for path in folder.glob('*')] for name, folder in folders.items()}

    young = fill(60)
    assert young.pop('finished') and young == {name: ['checkpoints'] for name in ('deleted', 'waiting')}
    assert fill(4000) == {'finished': [], 'deleted': [], 'waiting': ['checkpoints']}
    assert not folders['deleted'].exists()
