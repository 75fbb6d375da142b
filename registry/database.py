"""The connection to the database, its transactions, and its migrations.

All else speaks to the database in two ways: `read()` and `write()`. A `read()` sees one state of the database, on
PostgreSQL by REPEATABLE READ. A `write()` on SQLite takes the lock when it begins, so that what it reads still holds
when it writes; on PostgreSQL it is READ COMMITTED, and the code takes row locks where it needs them.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, Select, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    TimeoutError,
)
from sqlalchemy.orm import Session

from finetuner.excepts import NotFoundError, RegistryError, UnavailableError
from registry.models import Base

BUSY_TIMEOUT_MS = 60_000
LOCK_TIMEOUT_MS = 500
"""Less than the second after which PostgreSQL looks for a deadlock, and ends one of those who wait for each other."""
LOCK_PAUSE = 0.2
PIECE = 1000
"""Values in an IN. PostgreSQL takes 65,535 parameters in a statement, SQLite as few as 32,766."""
MIGRATIONS = Path(__file__).parent / 'migrations'
# any number that no other program on the same PostgreSQL database locks
MIGRATION_LOCK = 0x66_69_6E_65
INSERT_ATTEMPTS = 5
FOR_NOW = ('starting up', 'shutting down', 'in recovery mode', 'too many', 'connection slots')
"""What PostgreSQL says to a client that it would have at another time."""
FOREIGN_KEY = '23503'
"""What PostgreSQL calls a row that refers to none, or to which others refer."""
LOCKED = ('40001', '40P01', '55P03', '57014')
"""What PostgreSQL calls two transactions that cannot both go on, a deadlock, a lock that was not to be had, and what
took too long."""

SQLITE_OPTIONS: dict[str, Any] = {'pool_size': 8, 'max_overflow': 56}
POSTGRESQL_OPTIONS: dict[str, Any] = {
    # a server takes 100 connections by default, and every executor and worker is a process
    'pool_size': 4,
    'max_overflow': 4,
    'pool_timeout': 60,
    'pool_pre_ping': True,
    'connect_args': {
        'application_name': 'finetuner',
        'connect_timeout': 10,
        # a server that is gone without a word is noticed within a minute, not after hours
        'keepalives_idle': 30,
        'keepalives_interval': 10,
        'keepalives_count': 3,
        # prepared statements would not find their connection again behind a pooler such as PgBouncer
        'prepare_threshold': None,
    },
}

Row = TypeVar('Row', bound=Base)
Value = TypeVar('Value')


class Database:
    """A pool of connections to one database. Safe for threads, not for forks.

    :param url: of SQLite or PostgreSQL. `postgresql://` and `postgres://` mean psycopg.
    :raises RegistryError: it is no such URL, or the driver is not installed.
    """

    def __init__(self, url: str | URL):
        parsed = _parse(url)
        self.is_sqlite = parsed.get_backend_name() == 'sqlite'
        if self.is_sqlite:
            if not parsed.database or parsed.database == ':memory:':
                raise RegistryError(f'{parsed} is a database in memory: the service needs one in a file')
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        try:
            self.engine: Engine = create_engine(
                parsed,
                json_serializer=partial(json.dumps, allow_nan=False),
                **(SQLITE_OPTIONS if self.is_sqlite else POSTGRESQL_OPTIONS),
            )
        except ModuleNotFoundError as error:
            raise RegistryError(
                f'{parsed} needs the package {error.name}: pip install "finetuner[postgresql]"'
            ) from error
        if self.is_sqlite:
            event.listen(self.engine, 'connect', _prepare_sqlite)
            event.listen(self.engine, 'begin', _begin_sqlite)
            self._reading, self._writing = self.engine, self.engine.execution_options(write=True)
        else:
            self._reading = self.engine.execution_options(isolation_level='REPEATABLE READ', postgresql_readonly=True)
            self._writing = self.engine.execution_options(isolation_level='READ COMMITTED', write=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One transaction that sees one state of the database, and changes nothing.

        :raises UnavailableError: the connection was lost, or others held what it needed for too long.
        """
        with _told(), Session(self._reading) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction, committed at the end, rolled back on an exception.

        :raises UnavailableError: the connection was lost, or others held what it needed for too long.
        """
        with _told(), Session(self._writing) as session, session.begin():
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """One transaction that sees one state of the database in all that it reads.

        :raises UnavailableError: the connection was lost.
        """
        engine = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level='REPEATABLE READ')
        with _told(), engine.begin() as connection:
            yield connection

    @contextmanager
    def without_writers(self) -> Iterator[None]:
        """Others can read and not write meanwhile: they wait.

        :raises UnavailableError: others wrote for too long, or the connection was lost.
        """
        deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._locked())
                    break
                except UnavailableError:
                    if time.monotonic() > deadline:
                        raise
                time.sleep(LOCK_PAUSE)
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with _told(), self._writing.begin() as connection:
            if not self.is_sqlite:
                # writers take the tables in any order
                connection.execute(text(f'SET LOCAL statement_timeout = {LOCK_TIMEOUT_MS}'))
                tables = ', '.join(table.name for table in Base.metadata.sorted_tables)
                connection.execute(text(f'LOCK TABLE {tables} IN SHARE MODE'))
            yield

    def check_writable(self) -> None:
        """Make a write that changes nothing, after those who keep everybody from writing.

        :raises UnavailableError: it took too long, or the connection was lost.
        """
        with _told(), self._writing.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text('LOCK TABLE runs IN ROW EXCLUSIVE MODE'))
            connection.execute(text('UPDATE alembic_version SET version_num = version_num'))

    def migrate(self) -> None:
        """Bring the tables to this version of the program. Any number of processes may do so at once.

        :raises RegistryError: the database was made by a newer version, or cannot be used as this user.
        :raises UnavailableError: it cannot be reached: later it may be.
        """
        with self.connecting():
            self._migrate()

    def has_tables(self) -> bool:
        """Whether a registry was made in it, by this version or another.

        :raises RegistryError: the database cannot be used as this user.
        :raises UnavailableError: it cannot be reached: later it may be.
        """
        with self.connecting(), self._reading.begin() as connection:
            return MigrationContext.configure(connection).get_current_revision() is not None

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """Tell in a sentence of a database that cannot be reached, or used.

        :raises UnavailableError: it may be another time.
        :raises RegistryError: it will not.
        """
        try:
            yield
        except (OperationalError, ProgrammingError) as error:
            reason = str(error.orig).strip().partition('\n')[0]
            if not self.is_sqlite and (error.connection_invalidated or _is_away(error)):
                raise UnavailableError(f'The database {self.engine.url} cannot be reached: {reason}') from error
            raise RegistryError(f'The database {self.engine.url} cannot be used: {reason}') from error

    def _migrate(self) -> None:
        with self._writing.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text('SELECT pg_advisory_xact_lock(:number)'), {'number': MIGRATION_LOCK})
            config = alembic_config(connection)
            script = ScriptDirectory.from_config(config)
            current = MigrationContext.configure(connection).get_current_revision()
            if current == script.get_current_head():
                return
            if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
                raise RegistryError(
                    f'The database {self.engine.url!r} is at version {current}, which this program does not know: '
                    'it was made by a newer version; update the program'
                )
            command.upgrade(config, 'head')

    def close(self) -> None:
        self.engine.dispose()


def has_registry(url: str | URL) -> bool:
    """Whether there is a registry at the URL. No file is made where there is none.

    :raises RegistryError: it is no such URL, or the database cannot be used as this user.
    :raises UnavailableError: the database cannot be reached.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == 'sqlite' and parsed.database and not Path(parsed.database).is_file():
        return False
    database = Database(parsed)
    try:
        return database.has_tables()
    finally:
        database.close()


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, for `alembic.command` functions that work on `connection`."""
    config = Config(attributes={'connection': connection})
    config.set_main_option('script_location', str(MIGRATIONS).replace('%', '%%'))
    config.set_main_option('path_separator', 'os')
    return config


def find_or_insert(session: Session, query: Select[Row], make: Callable[[], Row]) -> tuple[Row, bool]:
    """The row that `query` finds, or else the new one of `make`, also if others insert it at once; and if it is new."""
    for attempt in range(INSERT_ATTEMPTS):
        row = session.scalar(query)
        if row is not None:
            return row, False
        try:
            with session.begin_nested():
                row = make()
                session.add(row)
            return row, True
        except IntegrityError:
            # somebody else has inserted it; and perhaps, when it is looked for, somebody has deleted it again
            if attempt == INSERT_ATTEMPTS - 1:
                raise
    raise AssertionError('unreachable')


def pieces(values: Iterable[Value]) -> Iterator[list[Value]]:
    """The values, no more of them at a time than an IN takes."""
    found = list(values)
    for start in range(0, len(found), PIECE):
        yield found[start : start + PIECE]


def read_page(session: Session, query: Select[Any], page: int, size: int) -> tuple[list[Any], int]:
    """The rows of one page of `query`, each as the query's tuple, and how many rows all pages have."""
    total = session.scalar(select(func.count()).select_from(query.order_by(None).subquery())) or 0
    return list(session.execute(query.offset((page - 1) * size).limit(size))), total


def _parse(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise RegistryError('The URL of the database is none: write postgresql://user:password@host/name') from error
    name = parsed.drivername.partition('+')[0]
    if name in ('postgres', 'postgresql'):
        return parsed.set(drivername='postgresql+psycopg')
    if name != 'sqlite':
        raise RegistryError(f'{parsed} is neither an SQLite nor a PostgreSQL database')
    return parsed


@contextmanager
def _told() -> Iterator[None]:
    """Tell in a sentence of a connection that was lost or not to be had, of locks that were not, and of what others
    have deleted or added meanwhile.

    After a lost connection nobody knows whether a commit was the last thing that it did.
    """
    try:
        yield
    except (DBAPIError, TimeoutError) as error:
        # what the driver says, for the log alone, names hosts and users
        if isinstance(error, TimeoutError) or _is_busy(error):
            raise UnavailableError('The database is busy: try again in a moment') from error
        if error.connection_invalidated or (isinstance(error, OperationalError) and error.statement is None):
            raise UnavailableError('The database cannot be reached: try again in a moment') from error
        if _breaks_foreign_key(error):
            if (error.statement or '').startswith('DELETE'):
                raise RegistryError('Something belongs to what is to be deleted: nothing is deleted') from error
            raise NotFoundError('The account, or what else this belongs to, has been deleted') from error
        raise


def _is_busy(error: DBAPIError) -> bool:
    """Whether others held what it needed: it may go well the next time."""
    if getattr(error.orig, 'sqlite_errorcode', 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return True
    return getattr(error.orig, 'sqlstate', None) in LOCKED


def _breaks_foreign_key(error: DBAPIError) -> bool:
    if getattr(error.orig, 'sqlite_errorcode', 0) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
        return True
    return getattr(error.orig, 'sqlstate', None) == FOREIGN_KEY


def _is_away(error: DBAPIError) -> bool:
    """Whether a server could not be connected to, and did not say that it will not have us."""
    if error.statement is not None:
        return False
    text = str(error.orig)
    return 'FATAL: ' not in text or any(words in text for words in FOR_NOW)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # transactions begin where _begin_sqlite says, not where the driver guesses
    connection.isolation_level = None
    connection.execute(f'PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}')
    connection.execute('PRAGMA foreign_keys = ON')
    connection.execute('PRAGMA journal_mode = WAL')


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql('BEGIN IMMEDIATE' if connection.get_execution_options().get('write') else 'BEGIN')
