import pytest
from sqlalchemy import event

from finetuner.excepts import ArtifactError, NotFoundError, RegistryError, RunInProgressError

pytestmark = pytest.mark.usefixtures('database')


def test_an_experiment_is_made_once(registry, account):
    made = registry.create_experiment(account, 'support', 'Questions of customers')
    assert (made.name, made.description, made.runs) == ('support', 'Questions of customers', 0)
    assert registry.create_experiment(account, 'support', 'another') == made
    assert registry.get_experiment(account, 'support') == made
    with pytest.raises(RegistryError, match='is not a valid experiment name'):
        registry.create_experiment(account, '../support')


def test_experiments_are_listed_page_by_page(registry, account):
    for name in 'abcde':
        registry.create_experiment(account, name)
    registry.create_run(account, 'e', 'run', {})
    pages = [registry.list_experiments(account, page, 2).items for page in (1, 2, 3, 4)]
    assert [[found.name for found in page] for page in pages] == [['e', 'd'], ['c', 'b'], ['a'], []]
    assert [found.runs for found in pages[0]] == [1, 0]
    with pytest.raises(RegistryError, match='There is no page 0 of 50 experiments'):
        registry.list_experiments(account, 0)


def test_another_account_sees_and_deletes_nothing(registry, account, finished_run):
    run = finished_run('support')
    other = registry.create_account('other').id
    assert registry.list_experiments(other).items == []
    for call in (
        lambda: registry.get_experiment(other, 'support'),
        lambda: registry.delete_experiments(other, ['support']),
        lambda: registry.delete_runs(other, 'support'),
        lambda: registry.delete_run(other, 'support', 'run'),
    ):
        with pytest.raises(RegistryError, match="There is no experiment 'support'"):
            call()
    assert registry.delete_experiments(other) == [] and registry.delete_runs(other) == []
    assert registry.get_run_by_id(run.id) == run


def test_deleting_a_run_leaves_nothing_of_it(registry, account, finished_run, stored_files):
    kept, run = finished_run(name='kept'), finished_run(name='gone')
    directory = registry.run_directory(run.id)
    assert len(stored_files()) == 2
    registry.delete_run(account, 'default', 'gone')
    assert [found.name for found in registry.list_runs(account).items] == ['kept']
    with pytest.raises(ArtifactError, match='There is no artifact'):
        registry.get_artifact(account, run.artifact_id)
    assert len(stored_files()) == 1 and not directory.exists()
    assert registry.artifact_file(registry.get_artifact(account, kept.artifact_id)).is_file()
    with pytest.raises(RegistryError, match="There is no run 'gone'"):
        registry.delete_run(account, 'default', 'gone')


def test_the_name_of_a_deleted_run_is_free(registry, account, finished_run):
    first = finished_run()
    registry.delete_run(account, 'default', 'run')
    second, is_new = registry.create_run(account, 'default', 'run', {'epochs': 2})
    assert is_new and second.artifact_id != first.artifact_id


def test_a_run_at_work_is_not_deleted_and_one_that_waits_is(registry, account, finished_run, stored_files):
    finished_run('support', 'done')
    working, _ = registry.create_run(account, 'support', 'working', {})
    registry.start_run(working.id, 'host:1')
    for call in (
        lambda: registry.delete_run(account, 'support', 'working'),
        lambda: registry.delete_runs(account, 'support'),
        lambda: registry.delete_runs(account),
        lambda: registry.delete_experiments(account),
    ):
        with pytest.raises(RunInProgressError, match="'working' of the experiment 'support' is at work: cancel it"):
            call()
    assert registry.get_experiment(account, 'support').runs == 2 and len(stored_files()) == 1, 'all or nothing'
    waiting, _ = registry.create_run(account, 'support', 'waiting', {})
    registry.delete_run(account, 'support', 'waiting')
    with pytest.raises(RegistryError):
        registry.start_run(waiting.id, 'host:2')


def test_runs_of_one_experiment_or_of_all_are_deleted(registry, account, finished_run, stored_files):
    for experiment in ('a', 'b', 'c'):
        for name in ('one', 'two'):
            finished_run(experiment, name)
    assert len(registry.delete_runs(account, 'a')) == 2
    assert registry.get_experiment(account, 'a').runs == 0 and registry.get_experiment(account, 'b').runs == 2
    assert [found.name for found in registry.delete_experiments(account, ['b'])] == ['b']
    assert [found.name for found in registry.list_experiments(account).items] == ['c', 'a']
    assert len(registry.delete_runs(account)) == 2 and stored_files() == []
    assert {found.name for found in registry.delete_experiments(account)} == {'a', 'c'}
    assert registry.list_experiments(account).items == []


@pytest.fixture
def statements(registry):
    """How many parameters each statement has from now on."""
    counts = []

    def note(connection, cursor, statement, parameters, context, is_executemany):
        counts.append(0 if is_executemany else len(parameters))

    event.listen(registry.database.engine, 'before_cursor_execute', note)
    yield counts
    event.remove(registry.database.engine, 'before_cursor_execute', note)


def submit_runs(registry, account, experiment, count):
    return [registry.create_run(account, experiment, f'run-{number}', {})[0] for number in range(count)]


def test_deleting_many_runs_takes_no_more_statements_than_deleting_a_few(registry, account, statements):
    """Nobody else can write meanwhile."""
    taken = []
    for experiment, count in (('few', 2), ('many', 20)):
        made = submit_runs(registry, account, experiment, count)
        statements.clear()
        deleted = registry.delete_runs(account, experiment)
        taken.append(len(statements))
        assert {run.name: run.queue_position for run in deleted} == {run.name: run.queue_position for run in made}
    assert taken[0] == taken[1]


def test_deleting_many_experiments_takes_no_more_statements_than_deleting_a_few(registry, account, statements):
    taken = []
    for count in (2, 20):
        names = [f'{count}-{number}' for number in range(count)]
        for name in names:
            registry.create_experiment(account, name)
        statements.clear()
        deleted = registry.delete_experiments(account, [*names, *names])
        taken.append(len(statements))
        assert [found.name for found in deleted] == names
    assert taken[0] == taken[1]


def test_a_name_that_is_not_there_keeps_the_others(registry, account):
    registry.create_experiment(account, 'support')
    with pytest.raises(NotFoundError, match="There is no experiment 'suport': similar names: support"):
        registry.delete_experiments(account, ['support', 'suport'])
    assert registry.get_experiment(account, 'support').runs == 0


def test_no_statement_of_a_deletion_has_more_parameters_than_databases_take(
    registry, account, finished_run, statements, stored_files, monkeypatch
):
    monkeypatch.setattr('registry.database.PIECE', 5)
    monkeypatch.setattr('registry.queue.PIECE', 5)
    names = [f'experiment-{number}' for number in range(12)]
    for delete in (registry.delete_runs, lambda who: registry.delete_experiments(who, names)):
        for name in names:
            finished_run(name)
            registry.create_run(account, name, 'waiting', {})
        statements.clear()
        deleted = delete(account)
        assert max(statements) < 10
        assert len(deleted) in (12, 24) and registry.list_runs(account).total == 0 and stored_files() == []
    assert registry.list_experiments(account).total == 0


def test_what_a_crash_left_of_a_deletion_goes_at_the_next_start(registry, account, finished_run, stored_files, script):
    """Killed between the commit and the removal of the file."""
    finished_run()
    process = script(
        """
        from registry import Registry
        from registry.objects import ObjectStore
        ObjectStore.delete = lambda self, key: os._exit(9)
        registry = Registry.open()
        registry.delete_run(registry.get_account().id, 'default', 'run')
        """
    )
    process.join(60)
    assert process.exitcode == 9 and registry.list_runs(account).items == []
    assert any(name.endswith('.zip') for name in stored_files())
    from registry import Registry

    Registry.open().close()
    assert not any(name.endswith('.zip') for name in stored_files())
