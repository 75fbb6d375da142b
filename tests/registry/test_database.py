import sqlite3

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateTable

from finetuner.excepts import RegistryError
from registry import Registry
from registry.database import Database, alembic_config
from registry.models import Base, now


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


def test_runs_and_artifacts_survive_the_migration_to_cancelled_runs(tmp_path):
    database = Database(f'sqlite:///{tmp_path / "old.db"}')
    with database._writing.begin() as connection:
        command.upgrade(alembic_config(connection), '0002')
        time = '2026-01-02 03:04:05.000000'
        for statement in (
            f"INSERT INTO accounts VALUES ('a', 'local', '{time}')",
            f"INSERT INTO experiments VALUES ('e', 'a', 'default', '{time}')",
            'INSERT INTO runs (id, experiment_id, name, status, details, description, config, datasets, artifact_id, '
            "progress, created_at) VALUES ('r', 'e', 'run', 'FINISHED', 'ö', '', '{\"n\": 1e-5}', '{}', 'f', '{}', "
            f"'{time}')",
            'INSERT INTO artifacts (id, account_id, run_id, size, sha256, public, key, created_at) '
            f"VALUES ('f', 'a', 'r', 9, 's', 0, 'k', '{time}')",
        ):
            connection.exec_driver_sql(statement)
        before = connection.execute(text('SELECT * FROM runs')).all()
        indexes = inspect(connection).get_indexes('runs')
    database.migrate()
    with database._writing.begin() as connection:
        columns = ', '.join(before[0]._fields)
        assert connection.execute(text(f'SELECT {columns} FROM runs')).all() == before
        assert inspect(connection).get_indexes('runs') == indexes
        assert connection.execute(text('PRAGMA foreign_key_check')).all() == []
        connection.execute(text("UPDATE runs SET status = 'CANCELLED'"))
    for statement in ("UPDATE runs SET status = 'LOST'", 'DELETE FROM runs', "UPDATE artifacts SET run_id = 'x'"):
        with pytest.raises(IntegrityError), database._writing.begin() as connection:
            connection.execute(text(statement))
    database.close()


def test_the_tables_can_be_made_on_postgresql():
    for table in Base.metadata.sorted_tables:
        assert 'TIMESTAMP WITH TIME ZONE' in str(CreateTable(table).compile(dialect=postgresql.dialect()))


def test_sqlite_is_safe(registry):
    with registry.database.engine.connect() as connection:
        assert connection.execute(text('PRAGMA journal_mode')).scalar() == 'wal'
        assert connection.execute(text('PRAGMA foreign_keys')).scalar() == 1
        assert connection.execute(text('PRAGMA busy_timeout')).scalar() >= 10_000


def test_a_writer_has_the_database_from_its_first_read(registry):
    with registry.database.write() as session:
        session.scalar(text('SELECT count(*) FROM runs'))
        other = sqlite3.connect(registry.home / 'registry.db', timeout=0)
        with pytest.raises(sqlite3.OperationalError, match='locked'):
            other.execute('BEGIN IMMEDIATE')
        assert other.execute('SELECT count(*) FROM accounts').fetchone() == (1,)
        other.close()


def test_a_database_of_a_newer_version_is_refused(registry):
    with registry.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(RegistryError, match='is at version 9999, .*made by a newer version; update the program'):
        Registry.open()


def test_a_database_in_memory_is_refused():
    with pytest.raises(RegistryError, match='is a database in memory'):
        Registry.open(database_url='sqlite://')


def test_places_come_from_the_environment(monkeypatch, tmp_path, documents):
    monkeypatch.setenv('FINETUNER_DATABASE_URL', f'sqlite:///{tmp_path / "elsewhere" / "state.db"}')
    monkeypatch.setenv('FINETUNER_OBJECTS_URL', str(tmp_path / 'objects elsewhere'))
    with Registry.open() as registry:
        registry.append_documents(registry.get_account().id, 'intents', documents(1))
    assert (tmp_path / 'elsewhere' / 'state.db').exists()
    assert len(list((tmp_path / 'objects elsewhere').rglob('*.arrow'))) == 1
    assert sorted(path.name for path in (tmp_path / 'home').iterdir()) == ['open.lock', 'staging']


def test_a_home_may_have_any_name(tmp_path, documents):
    home = tmp_path / 'Mein Ordner? 100% #1 ü'
    with Registry.open(home) as registry:
        registry.append_documents(registry.get_account().id, 'intents', documents(1))
    assert (home / 'registry.db').exists()
    assert len(list((home / 'objects').rglob('*.arrow'))) == 1


def test_times_keep_their_zone(tmp_path):
    database = Database(f'sqlite:///{tmp_path / "times.db"}')
    kept = Base.metadata.tables['accounts'].c.created_at.type
    time = now()
    bound = kept.process_bind_param(time, database.engine.dialect)
    assert kept.process_result_value(bound.replace(tzinfo=None), database.engine.dialect) == time
    with pytest.raises(ValueError, match='has no time zone'):
        kept.process_bind_param(time.replace(tzinfo=None), database.engine.dialect)
    database.close()


def test_data_sets_of_the_first_version_are_brought_along(tmp_path):
    database = Database(f'sqlite:///{tmp_path / "home" / "registry.db"}')
    with database._writing.begin() as connection:
        command.upgrade(alembic_config(connection), '0001')
        connection.execute(text("INSERT INTO accounts VALUES ('a', 'local', '2026-01-01')"))
        for name, texts in (('words', 1), ('files', 0)):
            values = f"'{name}', 'a', '{name}', 3, 10, 'cc', 1, {texts}, '2026-01-01'"
            connection.execute(text(f'INSERT INTO datasets VALUES ({values})'))
            values = f"'s-{name}', '{name}', 0, 3, 10, 'aa', 'bb', 1, {texts}, 'k-{name}', '2026-01-01'"
            connection.execute(text(f'INSERT INTO shards VALUES ({values})'))
    database.close()
    with Registry.open(tmp_path / 'home') as registry:
        words, files = (registry.get_dataset('a', name) for name in ('words', 'files'))
    assert (words.rows, words.shape, words.modalities, words.labelled, words.scored) == (
        3,
        'items',
        ('text',),
        True,
        False,
    )
    assert (files.shape, files.modalities, files.linked) == ('items', (), False)
