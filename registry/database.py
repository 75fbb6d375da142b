"""The connection to the database, its transactions, and its migrations.

All else speaks to the database in two ways: `read()` and `write()`. On SQLite a `write()` takes the lock when it
begins, so that what it reads still holds when it writes; on PostgreSQL the code takes row locks where it needs them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, Select, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from finetuner.excepts import RegistryError
from registry.models import Base

BUSY_TIMEOUT_MS = 60_000
MIGRATIONS = Path(__file__).parent / 'migrations'
# any number that no other program on the same PostgreSQL database locks
MIGRATION_LOCK = 0x66_69_6E_65

Row = TypeVar('Row', bound=Base)


class Database:
    """A pool of connections to one database. Safe for threads, not for forks."""

    def __init__(self, url: str | URL):
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == 'sqlite'
        if self.is_sqlite:
            if not parsed.database or parsed.database == ':memory:':
                raise RegistryError(f'{parsed} is a database in memory: the service needs one in a file')
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        self.engine: Engine = create_engine(
            parsed,
            pool_size=8,
            max_overflow=56,
            pool_pre_ping=not self.is_sqlite,
            json_serializer=partial(json.dumps, allow_nan=False),
        )
        if self.is_sqlite:
            event.listen(self.engine, 'connect', _prepare_sqlite)
            event.listen(self.engine, 'begin', _begin_sqlite)
        self._writing = self.engine.execution_options(write=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One transaction that sees one state of the database."""
        with Session(self.engine) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction, committed at the end, rolled back on an exception."""
        with Session(self._writing) as session, session.begin():
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """One transaction that sees one state of the database in all that it reads."""
        engine = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level='REPEATABLE READ')
        with engine.begin() as connection:
            yield connection

    @contextmanager
    def without_writers(self) -> Iterator[None]:
        """Others can read and not write meanwhile: they wait."""
        with self._writing.begin() as connection:
            if not self.is_sqlite:
                tables = ', '.join(table.name for table in Base.metadata.sorted_tables)
                connection.execute(text(f'LOCK TABLE {tables} IN SHARE MODE'))
            yield

    def migrate(self) -> None:
        """Bring the tables to this version of the program. Any number of processes may do so at once.

        :raises RegistryError: the database was made by a newer version.
        """
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


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, for `alembic.command` functions that work on `connection`."""
    config = Config(attributes={'connection': connection})
    config.set_main_option('script_location', str(MIGRATIONS).replace('%', '%%'))
    config.set_main_option('path_separator', 'os')
    return config


def find_or_insert(session: Session, query: Select[Row], make: Callable[[], Row]) -> tuple[Row, bool]:
    """The row that `query` finds, or else the new one of `make`, also if others insert it at once; and if it is new."""
    row = session.scalar(query)
    if row is not None:
        return row, False
    try:
        with session.begin_nested():
            row = make()
            session.add(row)
    except IntegrityError:
        row = session.scalar(query)
        if row is None:
            raise
        return row, False
    return row, True


def read_page(session: Session, query: Select[Any], page: int, size: int) -> tuple[list[Any], int]:
    """The rows of one page of `query`, each as the query's tuple, and how many rows all pages have."""
    total = session.scalar(select(func.count()).select_from(query.order_by(None).subquery())) or 0
    return list(session.execute(query.offset((page - 1) * size).limit(size))), total


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # transactions begin where _begin_sqlite says, not where the driver guesses
    connection.isolation_level = None
    connection.execute(f'PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}')
    connection.execute('PRAGMA foreign_keys = ON')
    connection.execute('PRAGMA journal_mode = WAL')


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql('BEGIN IMMEDIATE' if connection.get_execution_options().get('write') else 'BEGIN')
