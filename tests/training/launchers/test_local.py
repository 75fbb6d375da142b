"""Workers of a service that is no more, and what is left of them."""

import json
import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict

import psutil
import pytest

from registry import Registry
from registry.queue import Machine, Resources
from training.launchers import guard
from training.launchers.attempt import Attempt, Policy, lock, log_path, note_path
from training.launchers.child import Child, Orphan
from training.launchers.guard import Guard, Note
from training.launchers.local import LocalLauncher
from training.launchers.tidying import tidy

LOGGER = logging.getLogger('launchers-test')


@pytest.fixture
def registry():
    with Registry.open() as registry:
        yield registry


@pytest.fixture
def claimed(registry):
    run, _ = registry.create_run(registry.get_account().id, 'default', 'run', {})
    return registry.claim_run('host:1', [Machine(Resources(1), Resources(1))])


@pytest.fixture
def launcher(registry):
    launcher = LocalLauncher(registry, LOGGER, 1, (), Policy())
    yield launcher
    launcher.close()


class Ended:
    """A worker that was killed."""

    pid, end, was_killed = 2**22 + 1, 'The worker process was killed by SIGKILL', True

    def has_ended(self):
        return True

    def signal(self, number):
        pass


@pytest.mark.parametrize(
    'text', ['', '[]', '{"pid": 1}', '{"pid": 1, "needs": {}, "attempt": {"of": "a later version"}}']
)
def test_a_note_that_cannot_be_read_is_told_once_and_keeps_nobody_from_work(registry, launcher, claimed, text, caplog):
    log_path(registry.home, claimed.lease).parent.mkdir()
    note_path(registry.home, claimed.lease).write_text(text)
    for _ in range(2):
        launcher.adopt()
    assert len([record for record in caplog.records if 'cannot be read' in record.message]) == 1
    assert list((registry.home / 'attempts').iterdir()) == []


@pytest.fixture
def killed(registry, claimed):
    """The guard of a worker that was killed, when the system has killed something for want of memory as well."""

    def make(monkeypatch, kills=(3, 4), worker=Ended):
        attempt = Attempt.of(claimed, Policy(), ())
        note = Note(registry, attempt.lease)
        published = note.publish(json.dumps({'pid': worker.pid, 'needs': {}, 'attempt': asdict(attempt)}))
        log_path(registry.home, attempt.lease).write_text('a line\n')
        counts = iter([*kills, *[kills[-1]] * 100])
        monkeypatch.setattr(guard, 'kills_for_memory', lambda: next(counts))
        return Guard(registry, attempt, worker(), published, LOGGER)

    return make


def test_a_worker_that_the_system_killed_for_memory_has_failed(registry, claimed, killed, monkeypatch):
    killed(monkeypatch).watch()
    found = registry.get_run_by_id(claimed.id)
    assert found.status == 'FAILED' and found.details.startswith('Out of memory')


def test_a_stop_is_no_want_of_memory(registry, claimed, killed, monkeypatch):
    stopped = killed(monkeypatch)
    stopped.stop()
    stopped.watch()
    found = registry.get_run_by_id(claimed.id)
    assert (found.status, found.details, found.attempts) == ('CREATED', guard.STOPPED, 0)


def test_a_hang_is_no_want_of_memory(registry, claimed, killed, monkeypatch):
    silent = killed(monkeypatch)
    silent.kill()
    silent.watch()
    found = registry.get_run_by_id(claimed.id)
    assert found.status == 'CREATED' and 'gave no sign of life any more' in found.details


def test_another_process_that_was_killed_for_memory_long_before_is_not_the_worker(
    registry, claimed, killed, monkeypatch
):
    class LongLived(Ended):
        looks = 0

        def has_ended(self):
            self.looks += 1
            return self.looks > 60

    monkeypatch.setattr(guard, 'INTERVAL', 0.001)
    killed(monkeypatch, kills=(3, 4), worker=LongLived).watch()
    found = registry.get_run_by_id(claimed.id)
    assert found.status == 'CREATED' and found.details.startswith('The worker process was killed by SIGKILL')


def test_a_checkpoint_that_was_sent_leaves_nothing_on_this_machine(claimed, tmp_path):
    with Registry.open(objects_url='memory://checkpoints') as registry:
        packed = tmp_path / 'packed.zip'
        packed.write_bytes(b'weights')
        registry.store_checkpoint(claimed.id, claimed.lease, 'step-000000001', packed)
        assert not packed.exists()
        found = registry.fetch_checkpoint(registry.find_checkpoint(claimed.id), tmp_path / 'fetched')
        assert found.read_bytes() == b'weights'


def test_what_an_attempt_left_before_it_had_a_note_goes_when_nobody_holds_it(registry):
    folder = registry.home / 'attempts'
    folder.mkdir()
    for name in ('lost.aside', 'lost.log', 'kept.log', 'kept.json', 'young.log', 'held.log'):
        (folder / name).write_text('x')
        if not name.startswith('young'):
            os.utime(folder / name, (1, 1))
    with lock(folder / 'held.log', 'rb'):
        tidy(registry)
    assert sorted(path.name for path in folder.iterdir()) == ['held.log', 'kept.json', 'kept.log', 'young.log']


def test_the_time_that_a_run_may_take_does_not_begin_anew_with_another_service(registry, claimed, launcher):
    attempt = Attempt.of(claimed, Policy(), ())
    values = {'pid': Ended.pid, 'began': time.time() - 100, 'needs': {}, 'attempt': asdict(attempt)}
    log_path(registry.home, attempt.lease).parent.mkdir()
    note_path(registry.home, attempt.lease).write_text(json.dumps(values))
    launcher._policy = Policy(max_seconds=50)
    with lock(log_path(registry.home, attempt.lease), 'ab'):  # as a worker that lives holds it
        launcher.adopt()
        deadline = time.monotonic() + 20
        [guard_of] = launcher._guards
        while guard_of._verdict is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert 'took longer than the 50 seconds' in guard_of._verdict


STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(os.path.join(os.environ['FINETUNER_HOME'], f'{os.getpid()}.rank'), 'w')
time.sleep(300)
"""


def test_the_threads_of_a_training_wait_as_those_of_its_service(registry, claimed, monkeypatch):
    monkeypatch.setenv('OMP_WAIT_POLICY', 'PASSIVE')
    monkeypatch.setenv('GOMP_SPINCOUNT', '10000')
    environment = Attempt(claimed.id, claimed.lease, 'run', Policy()).environment(registry)
    assert (environment['OMP_WAIT_POLICY'], environment['GOMP_SPINCOUNT']) == ('PASSIVE', '10000')
    assert environment['FINETUNER_HOME'] == str(registry.home)


@pytest.fixture
def stubborn(registry, claimed, monkeypatch, tmp_path):
    """A worker of two processes that ignore SIGTERM, its attempt, and the two."""
    (tmp_path / 'stubborn.py').write_text(STUBBORN)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    command = Attempt.command.fget
    renamed = {'training.worker': 'stubborn'}
    monkeypatch.setattr(
        Attempt, 'command', property(lambda attempt: [renamed.get(part, part) for part in command(attempt)])
    )
    attempt = Attempt(claimed.id, claimed.lease, 'run', Policy(), processes=2)
    log_path(registry.home, attempt.lease).parent.mkdir()
    worker = Child(registry, attempt)
    ranks = []
    try:
        deadline = time.monotonic() + 120
        while len(ranks) < 2:
            assert time.monotonic() < deadline and not worker.has_ended()
            time.sleep(0.05)
            ranks = [psutil.Process(int(path.stem)) for path in registry.home.glob('*.rank')]
        yield worker, attempt, ranks
    finally:
        for pid in [worker.pid, *(rank.pid for rank in ranks)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize('killed', ['worker', 'orphan', 'parent'])
def test_a_worker_has_ended_when_all_of_its_processes_have(registry, stubborn, killed):
    """torchrun starts each in a group of its own, and they outlive it."""
    worker, attempt, ranks = stubborn
    if killed == 'worker':
        worker.signal(signal.SIGKILL)
    elif killed == 'orphan':
        Orphan(registry.home, attempt.lease, worker.pid).signal(signal.SIGKILL)
    else:
        os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not worker.has_ended():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not any(map(is_alive, ranks))
    assert Orphan(registry.home, attempt.lease, worker.pid).has_ended()
