"""The items of accounts in PostgreSQL with pgvector: more of them than memory holds, and there after a restart.

Each model has a table of its own. See https://github.com/pgvector/pgvector.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from logging import Logger

import numpy as np
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    JSON,
    URL,
    Column,
    ColumnElement,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    func,
    inspect,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from executors.vector_index import Hit
from finetuner.excepts import RegistryError, UnavailableError
from registry.database import Database, pieces
from registry.search_items import SearchItem

PREFIX = 'finetuner_items_'
"""Of the names of the tables."""
LOCK = 0x66_69_6E_64
"""Any number that no other program on the same database locks."""
OLDEST = (0, 8)
"""The version of pgvector whose HNSW goes on when what it found was deleted."""
MANY = 10_000
"""Items of an account from which on it gets an HNSW index; with fewer, a query is compared with each."""
MAX_INDEXED = 2000
"""Dimensions of embeddings that pgvector has an HNSW index for."""
CANDIDATES = 200
"""Items that HNSW looks at for a query, at least."""


class PgVectors:
    """A database for indices. Tables in it whose names begin with :data:`PREFIX` are those of the one who holds it.

    :param url: `postgresql://user:password@host/name`.
    :raises RegistryError: it is no PostgreSQL, cannot be used as this user, or has no pgvector.
    :raises UnavailableError: it cannot be reached, or another search holds it.
    """

    def __init__(self, url: str, logger: Logger):
        self.database, self._logger = Database(url), logger
        self._holder: Connection | None = None
        try:
            if self.database.is_sqlite:
                raise RegistryError(
                    'FINETUNER_SEARCH_INDEX_URL is of SQLite: it takes postgresql://user:password@host/name'
                )
            self.hold()
        except BaseException:
            self.close()
            raise

    def hold(self) -> None:
        """See to it that no other search holds the database: by a lock of a connection, which may have been lost.

        :raises UnavailableError: another one does.
        """
        if self._holder is not None:
            try:
                self._holder.execute(text('SELECT 1'))
                return
            except DBAPIError:
                self._holder.close()
                self._holder = None
        with self.database.connecting():
            holder = self._autocommit()
        try:
            # a machine that is gone without a word is noticed within a minute, and not after hours
            for setting, value in (('idle', 30), ('interval', 10), ('count', 3)):
                holder.execute(text(f'SET tcp_keepalives_{setting} = {value}'))
            _check_extension(holder)
            if not holder.scalar(select(func.pg_try_advisory_lock(LOCK))):
                raise UnavailableError('Another search has its index in the database of FINETUNER_SEARCH_INDEX_URL')
        except BaseException:
            holder.close()
            raise
        self._holder = holder

    def close(self) -> None:
        if self._holder is not None:
            with suppress(DBAPIError):  # the connection was lost, and the lock with it
                # at once: the server takes a while to notice that a connection is gone
                self._holder.execute(select(func.pg_advisory_unlock(LOCK)))
            self._holder.close()
            self._holder = None
        self.database.close()

    def index(self, model: str, dim: int) -> PgVectorIndex:
        """The index of a model, with what is in it from before."""
        return PgVectorIndex(self, model, dim)

    def drop_others(self, names: Collection[str]) -> None:
        """Drop the tables of all models but these. What cannot be dropped stays, and the log says why."""
        with self.database.read() as session:
            found = inspect(session.connection()).get_table_names()
        for name in found:
            if not name.startswith(PREFIX) or name in names:
                continue
            try:
                with self.database.write() as session:
                    session.execute(text("SET LOCAL lock_timeout = '5s'"))
                    Table(name, MetaData()).drop(session.connection(), checkfirst=True)
            except (DBAPIError, UnavailableError) as error:
                self._logger.warning(f'{name}, of a model before, stays in the index database: {error}')

    @property
    def place(self) -> str:
        """Where the indices are, for the log."""
        return place_of(self.database.engine.url)

    @contextmanager
    def outside_transactions(self) -> Iterator[Connection]:
        """A connection whose statements may take as long as they do."""
        connection = self._autocommit()
        try:
            connection.execute(text('SET statement_timeout = 0'))
            yield connection
        finally:
            connection.invalidate()  # the next one is not to have that setting
            connection.close()

    def _autocommit(self) -> Connection:
        return self.database.engine.connect().execution_options(isolation_level='AUTOCOMMIT')


def _check_extension(connection: Connection) -> None:
    """Create it, if this user may; who may not may use what is there."""
    installed = select(text('extversion')).select_from(text('pg_extension')).where(text("extname = 'vector'"))
    try:
        if connection.scalar(installed) is None:
            connection.execute(text('CREATE EXTENSION IF NOT EXISTS vector'))
    except DBAPIError as error:
        said = str(error.orig).partition('\n')[0]
        raise RegistryError(
            f'The database of FINETUNER_SEARCH_INDEX_URL has no pgvector ({said}): install it as '
            'https://github.com/pgvector/pgvector says, and have a superuser run CREATE EXTENSION vector in it'
        ) from error
    version = str(connection.scalar(installed))
    if tuple(int(part) for part in version.split('.')[:2]) < OLDEST:
        wanted = '.'.join(map(str, OLDEST))
        raise RegistryError(
            f'The database of FINETUNER_SEARCH_INDEX_URL has pgvector {version}, and {wanted} is needed: update it, '
            'and run ALTER EXTENSION vector UPDATE in it'
        )


def place_of(url: URL) -> str:
    """A database by its name and host: without the user, the password and options, which may be secrets."""
    host = url.host or url.query.get('host') or 'the server that libpq chooses'
    if ':' in str(host):
        host = f'[{host}]'
    return f'the database {url.database!r} at {host}' + (f':{url.port}' if url.port else '')


class PgVectorIndex:
    """Compares a query with every item of the account, or, where it has many, searches an HNSW index of its own, which
    may miss one of the nearest now and then.

    :param model: that all embeddings are of.
    :param dim: their dimensions.
    """

    def __init__(self, vectors: PgVectors, model: str, dim: int):
        self.model = model
        self._vectors, self._database, self._dim = vectors, vectors.database, dim
        self._items = _table(model, dim)
        with self._database.write() as session:
            self._items.create(session.connection(), checkfirst=True)

    @property
    def table(self) -> str:
        return self._items.name

    def upsert(self, items: Sequence[SearchItem]) -> None:
        """What is there already is not written again."""
        if not items:
            return
        columns = self._items.c
        statement = insert(self._items)
        new = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=[columns.account_id, columns.object_id],
            set_={name: new[name] for name in ('item_id', 'revision', 'text', 'meta', 'embedding')},
            where=or_(columns.item_id != new.item_id, columns.revision != new.revision),
        )
        with self._database.write() as session:
            session.execute(statement, [_row(item) for item in items])

    def sync(self, items: Sequence[SearchItem], after: str, last: str | None) -> None:
        """What is as it is to be is neither sent nor written."""
        columns = self._items.c
        known = select(columns.item_id, columns.revision).where(columns.item_id > after)
        with self._database.write() as session:
            found = session.execute(known if last is None else known.where(columns.item_id <= last))
            there = {row.item_id: row.revision for row in found}
            self._remove(session, columns.item_id, there.keys() - {item.id for item in items})
        self.upsert([item for item in items if there.get(item.id) != item.revision])

    def delete(self, account_id: str, object_ids: Collection[str]) -> None:
        columns = self._items.c
        with self._database.write() as session:
            self._remove(session, columns.object_id, object_ids, columns.account_id == account_id)

    def keep_accounts(self, account_ids: Collection[str]) -> None:
        account = self._items.c.account_id
        with self._database.write() as session:
            self._remove(session, account, set(session.scalars(select(account).distinct())) - set(account_ids))

    def _remove(
        self, session: Session, column: Column[str], values: Iterable[str], *further: ColumnElement[bool]
    ) -> None:
        """Delete the items that have one of the values, however many these are."""
        for piece in pieces(values):
            session.execute(delete(self._items).where(column.in_(piece), *further))

    def build(self) -> None:
        """Make the HNSW indices that are missing, of accounts that have many items, and drop those of accounts that
        have few by now. Nobody waits for it.
        """
        if self._dim > MAX_INDEXED:
            return
        account = self._items.c.account_id
        counted = select(account, func.count().label('size')).group_by(account).having(func.count() >= MANY // 2)
        with self._vectors.outside_transactions() as connection:
            sizes = {row.account_id: row.size for row in connection.execute(counted)}
            names = {f'{self.table}_hnsw_{_digest(account_id)}': account_id for account_id in sizes}
            found = connection.execute(text(_INDICES), {'table': self.table, 'hnsw': f'{self.table}_hnsw_%'})
            states = {row.relname: row for row in found}
            for name, state in states.items():
                # invalid: a process was killed while it made it, if not even the database goes on with it
                if not state.is_under_way and (name not in names or not state.indisvalid):
                    connection.execute(text(f'DROP INDEX CONCURRENTLY IF EXISTS "{name}"'))
            for name, account_id in names.items():
                is_there = name in states and (states[name].indisvalid or states[name].is_under_way)
                if not is_there and sizes[account_id] >= MANY:
                    connection.execute(text(self._create_index(name, account_id, connection)))

    def _create_index(self, name: str, account_id: str, connection: Connection) -> str:
        literal = String().literal_processor(connection.dialect)
        assert literal is not None
        return (
            f'CREATE INDEX CONCURRENTLY "{name}" ON "{self.table}" '
            f'USING hnsw (embedding vector_cosine_ops) WHERE account_id = {literal(account_id)}'
        )

    def search(self, account_id: str, embedding: np.ndarray, limit: int) -> list[Hit]:
        columns = self._items.c
        distance = columns.embedding.cosine_distance(embedding).label('distance')
        query = select(columns.object_id, columns.text, columns.meta, distance).where(columns.account_id == account_id)
        with self._database.read() as session:
            # what was deleted does not count
            session.execute(text("SET LOCAL hnsw.iterative_scan = 'strict_order'"))
            session.execute(text(f'SET LOCAL hnsw.ef_search = {max(CANDIDATES, limit)}'))
            found = session.execute(query.order_by(distance).limit(limit)).all()
        # an embedding of zeros has no angle
        return [
            Hit(item.object_id, item.text, item.meta, 0.0 if math.isnan(item.distance) else 1 - item.distance)
            for item in found
        ]


# the HNSW indices of a table: whether they can be used, and whether they are being made
_INDICES = """
SELECT c.relname, i.indisvalid, p.pid IS NOT NULL AS is_under_way
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_stat_progress_create_index p ON p.index_relid = i.indexrelid AND p.datname = current_database()
WHERE i.indrelid = to_regclass(:table) AND c.relname LIKE :hnsw
"""


def _table(model: str, dim: int) -> Table:
    return Table(
        PREFIX + _digest(f'{model} {dim}'),
        MetaData(),
        Column('account_id', String, primary_key=True),
        Column('object_id', String, primary_key=True),
        Column('item_id', String(collation='C'), nullable=False, index=True),  # as the registry sorts them
        Column('revision', Integer, nullable=False),
        Column('text', Text, nullable=False),
        Column('meta', JSON, nullable=False),
        Column('embedding', VECTOR(dim), nullable=False),
    )


def _row(item: SearchItem) -> dict[str, object]:
    return {
        'account_id': item.account_id,
        'object_id': item.object_id,
        'item_id': item.id,
        'revision': item.revision,
        'text': item.text,
        'meta': dict(item.meta or {}),
        'embedding': np.frombuffer(item.embedding, np.float32),
    }


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
