"""Fine-tuning tasks, on SQLite and on PostgreSQL."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from finetuner.excepts import NotFoundError, RegistryError
from registry.models import TuningTaskRow
from registry.registry import Registry

CONFIG = {'model': 'a-model', 'device': 'cpu'}


@pytest.fixture
def create(registry, account):
    def make(**options):
        return registry.tuning.create_task(account, 'shop', CONFIG, **options)[0]

    return make


@pytest.fixture
def finish(registry, artifact_path):
    """Has the run of a task start and finish."""

    def end(task, **options):
        assert registry.start_run(task.run_id, 'host:1')
        registry.finish_run(task.run_id, artifact_path, {'verdict': 'better'}, {}, **options)

    return end


def test_a_task_is_carried_by_a_run(registry, account, create, finish):
    task = create(metadata={'who': 'ann'})
    assert (task.method, task.status, task.batch_id, task.artifact_id) == ('shop', 'pending', None, None)
    assert task.metadata == {'who': 'ann'} and task.updated_at == task.created_at
    run = registry.get_run_by_id(task.run_id)
    assert (run.experiment_name, run.name) == ('fine-tuning', f'task-{task.id}') == ('fine-tuning', task.run_name)
    assert run.config == {**CONFIG, 'tuning_task': task.id}
    assert registry.start_run(task.run_id, 'host:1')
    assert registry.tuning.get_task(account, task.id).status == 'processing'
    registry.fail_run(task.run_id, 'There is no collecting batch')
    failed = registry.tuning.get_task(account, task.id)
    assert (failed.status, failed.details) == ('error', 'There is no collecting batch')
    assert failed.updated_at > task.updated_at
    assert registry.tuning.restart_task(account, task.id).status == 'pending'
    finish(task, details='Promoted', alias='shop@production')
    done = registry.tuning.get_task_by_id(task.id)
    assert (done.status, done.details, done.artifact_id) == ('done', 'Promoted', run.artifact_id)
    assert done.metrics == {'verdict': 'better'} and done.run_id == task.run_id
    assert registry.get_promotion(account, 'shop@production').artifact_id == run.artifact_id


def test_an_alias_that_cannot_be_given_leaves_the_run_unfinished(registry, create, finish, monkeypatch):
    task = create()

    def fail(*arguments):
        raise RegistryError('not now')

    monkeypatch.setattr('registry.promotions.promote', fail)
    with pytest.raises(RegistryError, match='not now'):
        finish(task, alias='shop@production')
    assert registry.tuning.get_task_by_id(task.id).status == 'processing'


def test_twenty_at_once_of_one_key_make_one_task(registry, account):
    key, gate = str(uuid.uuid4()), threading.Barrier(20)

    def post(number):
        gate.wait()
        return registry.tuning.create_task(account, f'method {number}', CONFIG, idempotency_key=key)

    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(post, range(20)))
    assert len({task.id for task, _ in made}) == 1 and [is_new for _, is_new in made].count(True) == 1
    assert len(registry.tuning.list_tasks(account)) == registry.list_runs(account).total == 1
    other = registry.create_account('other').id
    assert registry.tuning.create_task(other, 'shop', CONFIG, idempotency_key=key)[1], 'a key is of its account'


def test_cancel_and_restart(registry, account, create, finish):
    task = create()
    for _ in range(2):
        assert registry.tuning.cancel_task(account, task.id).status == 'canceled'
    assert registry.get_run_by_id(task.run_id).status == 'CANCELLED'
    for _ in range(2):
        assert registry.tuning.restart_task(account, task.id).status == 'pending'
    assert registry.start_run(task.run_id, 'host:1')
    assert registry.tuning.restart_task(account, task.id).status == 'processing', 'it goes on'
    registry.tuning.cancel_task(account, task.id)
    registry.release_run(task.run_id, registry.get_run_by_id(task.run_id).lease)
    assert registry.tuning.restart_task(account, task.id).run_id == task.run_id
    finish(task)
    assert registry.tuning.cancel_task(account, task.id).status == 'canceled', 'also after it was done'
    again = registry.tuning.restart_task(account, task.id)
    assert (again.status, again.run_name, again.artifact_id) == ('pending', f'task-{task.id}-2', None)
    assert registry.get_run_by_id(again.run_id).config == {**CONFIG, 'tuning_task': task.id}
    assert registry.get_run_by_id(task.run_id).status == 'FINISHED', 'what it has made stays'


def test_a_task_that_is_restarted_keeps_its_batch(registry, account, create, finish):
    registry.clicks.register_session(account, 's', 'q', [])
    batch = registry.clicks.release_batch(account, 'r').id
    task = create()
    registry.tuning.set_batch(task.id, batch)
    registry.clicks.register_session(account, 'later', 'q', [])
    assert registry.start_run(task.run_id, 'host:1')
    registry.fail_run(task.run_id, 'the loss is nan')
    assert registry.tuning.restart_task(account, task.id).batch_id == batch
    finish(task)
    again = registry.tuning.restart_task(account, task.id)
    assert (again.status, again.batch_id) == ('pending', batch), 'and so does one that was done'


def test_a_task_whose_run_is_resumed_is_not_canceled_any_more(registry, account, create):
    task = create()
    assert registry.tuning.cancel_task(account, task.id).status == 'canceled'
    assert registry.resume_run(task.run_id)
    assert registry.tuning.get_task(account, task.id).status == 'pending'
    assert [found.id for found in registry.tuning.list_tasks(account, status='pending')] == [task.id]


def test_a_task_that_says_canceled_while_its_run_is_at_work_is_restarted(registry, account, create):
    """As one may in a database of an earlier version."""
    task = create()
    assert registry.start_run(task.run_id, 'host:1')
    with registry.database.write() as session:
        session.execute(update(TuningTaskRow).values(is_canceled=True))
    assert registry.tuning.restart_task(account, task.id).status == 'processing'
    assert registry.tuning.get_task(account, task.id).status == 'processing'


def test_lists_are_in_order_and_by_status(registry, account, create, finish):
    tasks = [create() for _ in range(5)]
    finish(tasks[1])
    finish(tasks[2])
    registry.tuning.cancel_task(account, tasks[2].id)
    registry.tuning.cancel_task(account, tasks[3].id)

    def ids(**options):
        return [tasks.index(next(task for task in tasks if task.id == found.id)) for found in
                registry.tuning.list_tasks(account, **options)]  # fmt: skip

    assert ids() == [0, 1, 2, 3, 4] and ids(skip=1, limit=2) == [1, 2] and ids(skip=9) == []
    assert (ids(status='pending'), ids(status='done'), ids(status='canceled')) == ([0, 4], [1], [2, 3])
    assert ids(status='error') == ids(status='processing') == []
    for options in ({'status': 'failed'}, {'skip': -1}, {'limit': 0}, {'limit': 1001}):
        with pytest.raises(RegistryError):
            registry.tuning.list_tasks(account, **options)


def test_a_batch_must_be_there_and_released(registry, account, create):
    with pytest.raises(NotFoundError, match="There is no batch of the id 'x'"):
        create(batch_id='x')
    registry.clicks.register_session(account, 's', 'q', [])
    [collecting] = registry.clicks.list_batches(account).items
    with pytest.raises(RegistryError, match='still collects'):
        create(batch_id=collecting.id)
    registry.clicks.release_batch(account, 'r')
    assert create(batch_id=collecting.id).batch_id == collecting.id
    task = create()
    registry.tuning.set_batch(task.id, collecting.id)
    assert registry.tuning.get_task(account, task.id).batch_id == collecting.id


def test_another_account_sees_and_changes_nothing(registry, account, create, dump):
    task = create(idempotency_key='k')
    registry.clicks.register_session(account, 's', 'q', [])
    batch = registry.clicks.release_batch(account, 'r')
    other = registry.create_account('other').id
    before = dump()
    for name in ('get_task', 'cancel_task', 'restart_task'):
        with pytest.raises(NotFoundError, match=f'^Task with ID `{task.id}` not found$'):
            getattr(registry.tuning, name)(other, task.id)
    with pytest.raises(NotFoundError, match='There is no batch'):
        registry.tuning.create_task(other, 'shop', CONFIG, batch_id=batch.id)
    assert registry.tuning.list_tasks(other) == []
    assert dump() == before


def test_a_task_goes_with_its_run(registry, account, create):
    task = create()
    registry.delete_runs(account)
    with pytest.raises(NotFoundError, match='not found'):
        registry.tuning.get_task(account, task.id)


def test_a_quota_holds_for_tasks(registry, account, create, finish):
    finish(create())
    registry.set_quota(account, 10, None)
    with pytest.raises(RegistryError, match='The quota of the account'):
        create()
    assert len(registry.tuning.list_tasks(account)) == 1


def test_tasks_outlive_the_process(registry, account, create):
    task = create(metadata={'n': 1})
    with Registry.open() as again:
        assert again.tuning.get_task(account, task.id) == task
