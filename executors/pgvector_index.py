"""The items of accounts in PostgreSQL with pgvector: more of them than memory holds, and there after a restart.

Each model has a table of its own. See https://github.com/pgvector/pgvector.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence

import numpy as np
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import JSON, Column, Index, Integer, MetaData, String, Table, Text, delete, inspect, or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from executors.vector_index import Hit
from finetuner.excepts import RegistryError
from registry.database import Database
from registry.search_items import SearchItem

PREFIX = 'finetuner_items_'
"""Of the names of the tables."""
MAX_INDEXED = 2000
"""Dimensions of embeddings that pgvector has an HNSW index for; with more a query is compared with every item."""
CANDIDATES = 200
"""Items that HNSW looks at for a query, at least."""


def open_vectors(url: str) -> Database:
    """The database for indices.

    :param url: `postgresql://user:password@host/name`. Tables in it whose names begin with :data:`PREFIX` are ours.
    :raises RegistryError: it is no PostgreSQL, or has no pgvector.
    :raises UnavailableError: it cannot be reached.
    """
    database = Database(url)
    try:
        if database.is_sqlite:
            raise RegistryError(
                'FINETUNER_SEARCH_INDEX_URL is of SQLite: it takes postgresql://user:password@host/name'
            )
        with database.write() as session:
            _create_extension(session)
    except BaseException:
        database.close()
        raise
    return database


def _create_extension(session: Session) -> None:
    if session.scalar(text("SELECT 1 FROM pg_extension WHERE extname = 'vector'")):
        return  # who may not create it may use it
    try:
        session.execute(text('CREATE EXTENSION IF NOT EXISTS vector'))
    except DBAPIError as error:
        said = str(error.orig).partition('\n')[0]
        raise RegistryError(
            f'The database at FINETUNER_SEARCH_INDEX_URL has no pgvector ({said}): install it as '
            'https://github.com/pgvector/pgvector says, and have a superuser run CREATE EXTENSION vector in it'
        ) from error


class PgVectorIndex:
    """By HNSW, which may miss one of the nearest items now and then; exact for accounts with few.

    :param model: that all embeddings are of.
    :param dim: their dimensions.
    """

    def __init__(self, database: Database, model: str, dim: int):
        self.model = model
        self._database = database
        self._items = _table(model, dim)
        with database.write() as session:
            # two at once would both find that it is not there
            session.execute(text('SELECT pg_advisory_xact_lock(hashtext(:name))'), {'name': self._items.name})
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
        rows = [
            {
                'account_id': item.account_id,
                'object_id': item.object_id,
                'item_id': item.id,
                'revision': item.revision,
                'text': item.text,
                'meta': dict(item.meta or {}),
                'embedding': np.frombuffer(item.embedding, np.float32),
            }
            for item in items
        ]
        with self._database.write() as session:
            session.execute(statement, rows)

    def keep(self, items: Sequence[SearchItem], after: str, last: str | None) -> None:
        item_id = self._items.c.item_id
        others = delete(self._items).where(item_id > after, item_id.not_in([item.id for item in items]))
        with self._database.write() as session:
            session.execute(others if last is None else others.where(item_id <= last))

    def delete(self, account_id: str, object_ids: Sequence[str]) -> None:
        columns = self._items.c
        owned = columns.account_id == account_id, columns.object_id.in_(object_ids)
        with self._database.write() as session:
            session.execute(delete(self._items).where(*owned))

    def search(self, account_id: str, embedding: np.ndarray, limit: int) -> list[Hit]:
        columns = self._items.c
        distance = columns.embedding.cosine_distance(embedding).label('distance')
        query = select(columns.object_id, columns.text, columns.meta, distance).where(columns.account_id == account_id)
        with self._database.read() as session:
            # else it ends with the items of others that are nearer
            session.execute(text("SET LOCAL hnsw.iterative_scan = 'strict_order'"))
            session.execute(text(f'SET LOCAL hnsw.ef_search = {max(CANDIDATES, limit)}'))
            found = session.execute(query.order_by(distance).limit(limit)).all()
        # an embedding of zeros has no angle
        return [
            Hit(item.object_id, item.text, item.meta, 0.0 if math.isnan(item.distance) else 1 - item.distance)
            for item in found
        ]


def drop_others(database: Database, names: Collection[str]) -> None:
    """Drop the tables of all models but those of these names."""
    with database.write() as session:
        connection = session.connection()
        for name in inspect(connection).get_table_names():
            if name.startswith(PREFIX) and name not in names:
                Table(name, MetaData()).drop(connection, checkfirst=True)


def _table(model: str, dim: int) -> Table:
    name = PREFIX + hashlib.sha256(f'{model} {dim}'.encode()).hexdigest()[:16]
    table = Table(
        name,
        MetaData(),
        Column('account_id', String, primary_key=True),
        Column('object_id', String, primary_key=True),
        Column('item_id', String(collation='C'), nullable=False, index=True),  # as the registry sorts them
        Column('revision', Integer, nullable=False),
        Column('text', Text, nullable=False),
        Column('meta', JSON, nullable=False),
        Column('embedding', VECTOR(dim), nullable=False),
    )
    if dim <= MAX_INDEXED:
        Index(
            f'{name}_hnsw',
            table.c.embedding,
            postgresql_using='hnsw',
            postgresql_ops={'embedding': 'vector_cosine_ops'},
        )
    return table
