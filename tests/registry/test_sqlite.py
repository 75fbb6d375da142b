"""What is so on SQLite alone."""

import sqlite3

import pytest
from sqlalchemy import text

from finetuner.excepts import RegistryError
from registry import Registry


@pytest.fixture
def database_kind():
    return 'sqlite'


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


def test_a_database_in_memory_is_refused():
    with pytest.raises(RegistryError, match='is a database in memory'):
        Registry.open(database_url='sqlite://')


def test_a_home_may_have_any_name(tmp_path, documents):
    home = tmp_path / 'Mein Ordner? 100% #1 ü'
    with Registry.open(home) as registry:
        registry.append_documents(registry.get_account().id, 'intents', documents(1))
    assert (home / 'registry.db').exists()
    assert len(list((home / 'objects').rglob('*.arrow'))) == 1
