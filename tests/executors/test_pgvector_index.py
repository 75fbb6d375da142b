"""Items in PostgreSQL: what a restart and a promotion leave there, and who finds what."""

from __future__ import annotations

import dataclasses

import numpy as np
import psycopg
import pytest
from sqlalchemy import inspect, make_url, text

from executors.pgvector_index import PREFIX, PgVectorIndex, drop_others, open_vectors
from executors.search import SearchExecutor
from finetuner.excepts import RegistryError
from registry import Registry
from registry.search_items import NewItem, SearchItem

DIM = 8


@pytest.fixture
def url(new_postgresql):
    return new_postgresql('template0')


@pytest.fixture
def database(url):
    database = open_vectors(url)
    yield database
    database.close()


@pytest.fixture
def index(database):
    return PgVectorIndex(database, 'a model', DIM)


def make_item(number, embedding, account_id='ours', revision=1):
    embedding = np.asarray(embedding, np.float32).tobytes()
    return SearchItem(
        f'{number:024x}', account_id, f'p{number}', f'text {number}', None, 'a model', embedding, revision
    )


def axis(place):
    return np.eye(DIM, dtype=np.float32)[place]


def ids(index, query, limit=10, account_id='ours'):
    return [hit.object_id for hit in index.search(account_id, query, limit)]


def tables(database):
    return {name for name in inspect(database.engine).get_table_names() if name.startswith(PREFIX)}


def versions(database, index):
    """What PostgreSQL calls the transaction that wrote an item, by account and id."""
    with database.read() as session:
        rows = session.execute(text(f'SELECT account_id, object_id, xmin::text FROM {index.table}'))
        return {(account_id, object_id): version for account_id, object_id, version in rows}


def test_the_nearest_are_found_among_many_nearer_ones_of_others(index, database):
    query = axis(0)
    theirs = [make_item(number, query + 0.01 * axis(1 + number % 3), 'theirs') for number in range(3000)]
    index.upsert(theirs)
    index.upsert([make_item(4000 + place, query + place * axis(1)) for place in range(5)])
    with database.write() as session:
        session.execute(text(f'ANALYZE {index.table}'))
        session.execute(text("SELECT set_config('enable_seqscan', 'off', false)"))
    found = index.search('ours', query, 10)
    assert [hit.object_id for hit in found] == [f'p{4000 + place}' for place in range(5)]
    assert [hit.score for hit in found] == pytest.approx([(1 + place**2) ** -0.5 for place in range(5)], abs=1e-6)


def test_hnsw_finds_what_comparing_with_all_finds(index, database):
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(2000, DIM)).astype(np.float32)
    index.upsert([make_item(number, row) for number, row in enumerate(embeddings)])
    with database.write() as session:
        session.execute(text(f'ANALYZE {index.table}'))
        plan = ' '.join(
            session.scalars(
                text(
                    f"EXPLAIN SELECT object_id FROM {index.table} WHERE account_id = 'ours' "
                    f"ORDER BY embedding <=> '{axis(0).tolist()}' LIMIT 10"
                )
            )
        )
    assert 'hnsw' in plan
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = expected = 0
    for query in random.normal(size=(20, DIM)).astype(np.float32):
        nearest = {f'p{place}' for place in np.argsort(-embeddings @ query)[:10]}
        found += len(nearest & set(ids(index, query)))
        expected += len(nearest)
    assert found >= 0.98 * expected


def test_what_is_there_is_not_written_again(index, database):
    items = [make_item(number, axis(number)) for number in range(3)]
    index.upsert(items)
    before = versions(database, index)
    index.upsert([items[0], dataclasses.replace(items[1], text='other', revision=2), items[2]])
    after = versions(database, index)
    assert [name for name in before if before[name] != after[name]] == [('ours', 'p1')]
    assert {hit.text for hit in index.search('ours', axis(1), 10)} == {'text 0', 'other', 'text 2'}


def test_all_others_of_a_range_are_removed(index):
    items = [make_item(number, axis(number)) for number in range(6)]
    index.upsert(items)
    index.keep([items[1], items[3]], items[0].id, items[3].id)
    assert sorted(ids(index, axis(0))) == ['p0', 'p1', 'p3', 'p4', 'p5']
    index.keep([], items[4].id, None)
    assert sorted(ids(index, axis(0))) == ['p0', 'p1', 'p3', 'p4']


def test_an_embedding_of_zeros_is_the_last(index):
    index.upsert([make_item(0, np.zeros(DIM)), make_item(1, axis(1)), make_item(2, -axis(1))])
    assert [(hit.object_id, hit.score) for hit in index.search('ours', axis(1), 10)] == [
        ('p1', 1),
        ('p2', -1),
        ('p0', 0),
    ]


def test_models_and_dimensions_have_tables_of_their_own(index, database):
    others = [PgVectorIndex(database, 'another', DIM), PgVectorIndex(database, 'a model', 2100)]
    index.upsert([make_item(0, axis(0))])
    others[1].upsert([make_item(7, np.ones(2100))])
    assert (ids(index, axis(0)), ids(others[0], axis(0)), ids(others[1], np.ones(2100))) == (['p0'], [], ['p7'])
    assert len(tables(database)) == 3
    with database.write() as session:
        session.execute(text('CREATE TABLE of_somebody_else (id int)'))
    drop_others(database, {index.table})
    assert tables(database) == {index.table} and inspect(database.engine).has_table('of_somebody_else')
    assert PgVectorIndex(database, 'a model', DIM).search('ours', axis(0), 1)[0].object_id == 'p0'


def test_a_restart_takes_over_what_the_registry_has(url, database, tiny_model, monkeypatch):
    """Also after a kill between the registry and the index, and after an account was deleted."""
    monkeypatch.setenv('FINETUNER_SEARCH_INDEX_URL', url)
    with Registry.open() as registry:
        account, gone = registry.get_account().id, registry.create_account('gone').id
        for owner in (account, gone):
            new = [NewItem(f'p{number}', f'text {number}', None, b'\0' * 96) for number in range(600)]
            registry.items.upsert(owner, str(tiny_model), new)

    def start():
        executor = SearchExecutor(model=str(tiny_model))
        executor.close()
        return executor.searched.index

    index = start()
    before = versions(database, index)
    assert len(before) == 1200
    with Registry.open() as registry:
        registry.delete_account(gone)
        registry.items.delete(account, ['p0', 'p599'])
        registry.items.upsert(account, str(tiny_model), [NewItem('p1', 'another', None, b'\0' * 96)])
    with database.write() as session:
        session.execute(text(f"DELETE FROM {index.table} WHERE object_id = 'p2'"))
    after = versions(database, start())
    assert set(before) - set(after) == {(gone, f'p{number}') for number in range(600)} | {
        (account, 'p0'),
        (account, 'p599'),
    }
    assert {name for name, version in after.items() if version != before[name]} == {(account, 'p1'), (account, 'p2')}


def test_a_database_that_cannot_be_used_is_told(new_postgresql, url, tmp_path):
    with pytest.raises(RegistryError, match='FINETUNER_SEARCH_INDEX_URL is of SQLite: it takes postgresql://'):
        open_vectors(f'sqlite:///{tmp_path}/items.db')
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute('CREATE ROLE guest LOGIN')
    try:
        guest = make_url(url).set(username='guest').render_as_string(hide_password=False)
        with pytest.raises(RegistryError, match='has no pgvector .*permission denied.* superuser run CREATE EXTENSION'):
            open_vectors(guest)
        open_vectors(url).close()
        open_vectors(guest).close()  # now that it is there
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute('DROP ROLE guest')
