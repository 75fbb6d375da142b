"""What is so on PostgreSQL alone."""

import sys
import threading
import time

import pytest
from sqlalchemy import delete, make_url, text

from finetuner.excepts import FinetunerServerError, RegistryError, UnavailableError
from registry import Registry
from registry.database import Database
from registry.models import AccountRow, ArtifactRow, RunRow


@pytest.fixture
def database_kind():
    return 'postgresql'


@pytest.mark.parametrize('name', ['postgresql', 'postgres', 'postgresql+psycopg2'])
def test_urls_mean_psycopg(name):
    database = Database(f'{name}://user@host/name')
    assert database.engine.url.render_as_string() == 'postgresql+psycopg://user@host/name'
    assert database.engine.dialect.driver == 'psycopg'


def test_a_missing_driver_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'psycopg', None)
    with pytest.raises(
        RegistryError, match=r'needs the package psycopg: pip install "finetuner\[postgresql\]"'
    ) as raised:
        Registry.open(database_url='postgresql://user:s3cret@host/name')
    assert 's3cret' not in str(raised.value)


@pytest.mark.parametrize(
    'url, sentence',
    [
        ('mysql://user:s3cret@host/name', 'is neither an SQLite nor a PostgreSQL database'),
        ('s3cret', 'The URL of the database is none: write postgresql://'),
    ],
)
def test_a_database_that_cannot_be_used_is_told(url, sentence):
    with pytest.raises(RegistryError, match=sentence) as raised:
        Registry.open(database_url=url)
    assert 's3cret' not in str(raised.value)


def test_a_database_that_is_away_is_told_from_one_that_says_no(new_postgresql):
    with pytest.raises(UnavailableError) as raised:
        Registry.open(database_url='postgresql://user:s3cret@127.0.0.1:1/name')
    assert 'postgresql+psycopg://user:***@127.0.0.1:1/name cannot be reached: ' in str(raised.value)
    url = make_url(new_postgresql('template0')).set(database='no_such_database')
    with pytest.raises(RegistryError, match='cannot be used: .*"no_such_database" does not exist'):
        Registry.open(database_url=url)


def test_a_user_who_may_not_make_tables_is_told(new_postgresql):
    url = make_url(new_postgresql('template0'))
    admin = Database(url)
    with admin.engine.begin() as connection:
        connection.execute(text('CREATE ROLE guest LOGIN'))
    try:
        with pytest.raises(RegistryError, match='cannot be used: permission denied for schema public'):
            Registry.open(database_url=url.set(username='guest'))
    finally:
        with admin.engine.begin() as connection:
            connection.execute(text('DROP ROLE guest'))
        admin.close()


def test_a_read_sees_one_state_of_the_database(registry):
    with registry.database.read() as session:
        assert session.scalar(text('SELECT count(*) FROM accounts')) == 1
        registry.create_account('other')
        assert session.scalar(text('SELECT count(*) FROM accounts')) == 1
    assert registry.list_accounts().total == 2


def test_a_read_cannot_write(registry):
    with pytest.raises(Exception, match='read-only transaction'), registry.database.read() as session:
        session.add(AccountRow(name='other'))
    assert registry.list_accounts().total == 1


def end_connections(registry):
    """What the end of the server, or of the network, looks like from here."""
    other = Database(registry.database.engine.url)
    with other.engine.begin() as connection:
        statement = 'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()'
        connection.execute(text(f'{statement} AND pid != pg_backend_pid()'))
    other.close()


def test_a_lost_connection_is_made_again(registry):
    assert registry.get_account().name == 'local'
    end_connections(registry)
    assert registry.get_account().name == 'local'


def test_a_connection_lost_within_a_transaction_is_told(registry):
    with (
        pytest.raises(FinetunerServerError, match='The database cannot be reached'),
        registry.database.write() as session,
    ):
        session.add(AccountRow(name='other'))
        session.flush()
        end_connections(registry)
        session.scalar(text('SELECT 1'))
    assert registry.list_accounts().total == 1


def test_more_threads_than_connections_wait_for_one(registry):
    errors = []

    def look():
        try:
            for _ in range(5):
                registry.get_account()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    other = Database(registry.database.engine.url)
    with other.read() as session:
        used = session.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'finetuner'"))
    other.close()
    assert used <= 4 + 1, 'what is idle, and the one that asks'


def test_a_row_that_others_hold_is_told(registry):
    registry.get_account()
    change = text('UPDATE accounts SET name = name')
    with registry.database.write() as holding:
        holding.execute(change)
        with (
            pytest.raises(UnavailableError, match='The database is busy: try again'),
            registry.database.write() as waiting,
        ):
            waiting.execute(text("SET LOCAL lock_timeout = '50ms'"))
            waiting.execute(change)


def test_whoever_locks_out_writers_and_a_deletion_do_not_wait_for_each_other(registry):
    """Each needs what the other has: the tables of runs and of artifacts."""
    is_deleting, errors = threading.Event(), []

    def remove():
        try:
            with registry.database.write() as session:
                session.execute(delete(ArtifactRow))
                is_deleting.set()
                time.sleep(0.3)
                session.execute(delete(RunRow))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=remove)
    thread.start()
    is_deleting.wait()
    with registry.database.without_writers():
        assert registry.get_account().name == 'local'
    thread.join()
    assert errors == []


def test_it_waits_with_a_check_whether_something_can_be_written(registry):
    seconds = []

    def check():
        started = time.monotonic()
        registry.check_writable()
        seconds.append(time.monotonic() - started)

    check()
    with registry.database.without_writers():
        thread = threading.Thread(target=check)
        thread.start()
        time.sleep(0.5)
        assert len(seconds) == 1
    thread.join()
    assert seconds[1] > 0.4
