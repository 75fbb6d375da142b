"""The tables are those of the models, and come from those of the first version with all that is in them."""

from datetime import UTC, datetime

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, inspect, text
from sqlalchemy.exc import IntegrityError

from registry import Registry
from registry.database import Database, alembic_config
from registry.models import Base

TIME = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)


def test_the_migrated_tables_are_those_of_the_models(registry):
    with registry.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={'compare_type': True})
        assert compare_metadata(context, Base.metadata) == []
        assert context.get_current_revision() == ScriptDirectory.from_config(alembic_config()).get_current_head()


def test_constraints_are_those_of_the_models(registry):
    found, expected = inspect(registry.database.engine), Base.metadata
    for table in expected.sorted_tables:
        checks = {check['name'] for check in found.get_check_constraints(table.name)}
        keys = {key['name'] for key in found.get_foreign_keys(table.name)}
        named = {str(constraint.name) for constraint in table.constraints}
        assert checks | keys == {name for name in named if name.startswith(('ck_', 'fk_'))}


def test_the_first_version_is_0001():
    script = ScriptDirectory.from_config(alembic_config())
    assert script.get_base() == '0001'


@pytest.fixture
def old(empty_database):
    """A database at the first version, and a function that brings it to another and inserts rows there."""
    database = Database(empty_database)

    def at(version, **tables):
        with database.engine.begin() as connection:
            command.upgrade(alembic_config(connection), version)
            for name, rows in tables.items():
                # as the tables are at that version, not as the models have them
                table = Table(name, MetaData(), autoload_with=connection)
                for row in rows:
                    connection.execute(table.insert(), row)

    yield database, at
    database.close()


def a_run(number, status, **columns):
    return {
        'id': f'r{number}',
        'experiment_id': 'e',
        'name': f'run-{number}',
        'status': status,
        'details': 'ö',
        'description': '',
        'config': {'n': 1e-5, 'text': 'ü'},
        'datasets': {},
        'artifact_id': f'f{number}',
        'progress': {'epoch': 2},
        'created_at': TIME,
        **columns,
    }


def a_shard(name, **columns):
    digests = {'sha256': 'aa', 'content_digest': 'bb', 'key': f'k-{name}'}
    numbers = {'part': 0, 'rows': 3, 'size': 10, 'labelled': True}
    return {'id': f's-{name}', 'dataset_id': name, 'created_at': TIME, **digests, **numbers, **columns}


def a_dataset(name, **columns):
    sums = {'rows': 3, 'size': 10, 'digest': 'cc', 'labelled': True}
    return {'id': name, 'account_id': 'a', 'name': name, 'created_at': TIME, **sums, **columns}


def test_all_that_was_there_is_there_in_the_newest_version(old, tmp_path):
    """Each version's tables get rows of that version, and all of them are looked at in the end."""
    database, at = old
    at(
        '0001',
        accounts=[{'id': 'a', 'name': 'local', 'created_at': TIME}],
        tokens=[
            {'id': 't', 'account_id': 'a', 'name': 'laptop', 'digest': 'dd', 'expires_at': TIME, 'created_at': TIME}
        ],
        datasets=[a_dataset('words', texts=True), a_dataset('files', texts=False)],
        shards=[a_shard('words', texts=True), a_shard('files', texts=False)],
        experiments=[{'id': 'e', 'account_id': 'a', 'name': 'default', 'created_at': TIME}],
        runs=[a_run(1, 'FINISHED', metrics={'after': {}}, finished_at=TIME), a_run(2, 'CREATED')],
        artifacts=[
            {
                'id': 'f1',
                'account_id': 'a',
                'run_id': 'r1',
                'size': 9,
                'sha256': 'ee',
                'public': False,
                'key': 'k',
                'created_at': TIME,
            }
        ],
    )
    kinds = {'shape': 'pairs', 'modalities': 'text,image', 'scored': True, 'linked': False}
    at('0002', datasets=[a_dataset('pairs', **kinds)], shards=[a_shard('pairs', **kinds)])
    indexes = inspect(database.engine).get_indexes('runs')
    at('0003', runs=[a_run(3, 'CANCELLED')])
    assert inspect(database.engine).get_indexes('runs') == indexes
    at(
        '0004',
        experiments=[{'id': 'e4', 'account_id': 'a', 'name': 'four', 'description': 'ä', 'created_at': TIME}],
    )
    at(
        '0005',
        runs=[a_run(5, 'STARTED', priority=3, attempts=1, lease='l', not_before=TIME)],
        promotions=[
            {
                'id': 'p',
                'account_id': 'a',
                'alias': 'words@production',
                'number': 1,
                'artifact_id': 'f1',
                'created_at': TIME,
            }
        ],
        log_pieces=[{'id': 'l', 'run_id': 'r5', 'offset': 0, 'data': b'\0line', 'created_at': TIME}],
        checkpoints=[
            {'id': 'c', 'run_id': 'r5', 'name': 'last', 'size': 7, 'sha256': 'ff', 'key': 'kc', 'created_at': TIME}
        ],
    )
    at(
        '0006',
        click_batches=[
            {
                'id': 'b',
                'account_id': 'a',
                'status': 'released',
                'last_number': 1,
                'release_id': 'r',
                'created_at': TIME,
            }
        ],
        click_sessions=[
            {
                'id': 's',
                'account_id': 'a',
                'batch_id': 'b',
                'number': 1,
                'session_id': 'visit',
                'search_query': 'ö',
                'search_results': [{'object_id': 'x'}],
                'is_irrelevant': False,
                'created_at': TIME,
            }
        ],
    )
    at(
        '0007',
        tuning_tasks=[
            {
                'id': 't7',
                'account_id': 'a',
                'method': 'm',
                'batch_id': 'b',
                'meta': {'who': 'ü'},
                'run_id': 'r1',
                'is_canceled': False,
                'restarts': 0,
                'updated_at': TIME,
                'created_at': TIME,
            }
        ],
    )
    at(
        '0008',
        search_items=[
            {
                'id': 'i',
                'account_id': 'a',
                'object_id': 'p',
                'text': 'ö',
                'meta': {'price': 3},
                'model': 'm',
                'embedding': b'\0\1',
                'revision': 1,
                'created_at': TIME,
            }
        ],
    )
    url = database.engine.url
    with Registry.open(tmp_path / 'home', url) as registry:
        account = registry.get_account()
        assert (account.id, account.created_at, account.max_bytes, account.max_runs) == ('a', TIME, None, None)
        [token] = registry.list_tokens('a').items
        assert (token.name, token.expires_at, token.revoked_at) == ('laptop', TIME, None)

        words, files, pairs = (registry.list_shards('a', name)[0] for name in ('words', 'files', 'pairs'))
        assert (words.rows, words.shape, words.modalities) == (3, 'items', ('text',))
        assert (words.labelled, words.scored, words.created_at) == (True, False, TIME)
        assert (files.shape, files.modalities, files.linked) == ('items', (), False)
        assert (pairs.shape, pairs.modalities, pairs.scored) == ('pairs', ('text', 'image'), True)
        [shard] = registry.get_dataset('a', 'pairs').shards
        assert (shard.id, shard.size, shard.key, shard.modalities) == ('s-pairs', 10, 'k-pairs', ('text', 'image'))

        found = {run.name: run for run in registry.list_runs('a').items}
        statuses = {'run-1': 'FINISHED', 'run-2': 'CREATED', 'run-3': 'CANCELLED', 'run-5': 'STARTED'}
        assert {name: run.status for name, run in found.items()} == statuses
        for run in found.values():
            assert (run.details, run.config, run.progress) == ('ö', {'n': 1e-5, 'text': 'ü'}, {'epoch': 2})
        assert (found['run-1'].metrics, found['run-1'].finished_at) == ({'after': {}}, TIME)
        assert {found.name: found.description for found in registry.list_experiments('a').items} == {
            'default': '',
            'four': 'ä',
        }
        [artifact] = registry.list_artifacts('a').items
        assert (artifact.id, artifact.size, artifact.key, artifact.aliases) == ('f1', 9, 'k', ('words@production',))
        usage = registry.usage('a')
        assert (usage.datasets.count, usage.datasets.bytes, usage.artifacts.bytes) == (3, 30, 9)
        assert (usage.checkpoints.count, usage.checkpoints.bytes, usage.waiting, usage.at_work) == (1, 7, 1, 1)
        with registry.database.read() as session:
            rows = session.execute(text('SELECT id, priority, attempts, lease FROM runs ORDER BY id')).all()
            assert rows == [('r1', 0, 0, None), ('r2', 0, 0, None), ('r3', 0, 0, None), ('r5', 3, 1, 'l')]
            assert bytes(session.scalar(text('SELECT data FROM log_pieces'))) == b'\0line'
        [visit] = registry.clicks.batch_sessions('a', 'b').sessions
        assert (visit.session_id, visit.search_query, visit.created_at) == ('visit', 'ö', TIME)
        [item] = registry.items.read()
        assert (item.object_id, item.text, item.meta, item.embedding) == ('p', 'ö', {'price': 3}, b'\0\1')
        with registry.database.read() as session:
            assert session.scalar(text('SELECT size FROM search_items')) == 4096 + 1 + len('{"price": 3}')
        task = registry.tuning.get_task('a', 't7')
        assert (task.status, task.batch_id, task.run_name, task.metadata) == ('done', 'b', 'run-1', {'who': 'ü'})


def test_constraints_hold_after_the_migrations(old):
    database, at = old
    at(
        '0001',
        accounts=[{'id': 'a', 'name': 'local', 'created_at': TIME}],
        experiments=[{'id': 'e', 'account_id': 'a', 'name': 'default', 'created_at': TIME}],
        runs=[a_run(1, 'FINISHED')],
        artifacts=[
            {
                'id': 'f1',
                'account_id': 'a',
                'run_id': 'r1',
                'size': 9,
                'sha256': 'ee',
                'public': True,
                'key': 'k',
                'created_at': TIME,
            }
        ],
    )
    database.migrate()
    for statement in (
        "UPDATE runs SET status = 'LOST'",
        'DELETE FROM runs',
        "UPDATE artifacts SET run_id = 'x'",
        "UPDATE artifacts SET id = 'f1', key = NULL",
    ):
        with pytest.raises(IntegrityError), database.engine.begin() as connection:
            connection.execute(text(statement))
