"""Items in PostgreSQL: what a restart and a promotion leave there, and who finds what."""

from __future__ import annotations

import dataclasses
import logging
import time

import numpy as np
import psycopg
import pytest
from sqlalchemy import inspect, make_url, text

from executors import pgvector_index
from executors.pgvector_index import PREFIX, PgVectors, place_of
from executors.search import SearchExecutor
from finetuner.excepts import RegistryError, UnavailableError
from registry import Registry
from registry.database import Database
from registry.search_items import NewItem, SearchItem

DIM = 8
LOGGER = logging.getLogger('test')


@pytest.fixture
def url(new_postgresql):
    return new_postgresql('template0')


@pytest.fixture
def vectors(url):
    vectors = PgVectors(url, LOGGER)
    yield vectors
    vectors.close()


@pytest.fixture
def database(url):
    """The same database, as an operator looks at it."""
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def index(vectors):
    return vectors.index('a model', DIM)


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
    """What PostgreSQL calls the transactions that wrote and locked an item, by account and id."""
    with database.read() as session:
        rows = session.execute(text(f"SELECT account_id, object_id, xmin || ' ' || xmax FROM {index.table}"))
        return {(account_id, object_id): version for account_id, object_id, version in rows}


def scans(database, index):
    """How often HNSW indices were searched, by PostgreSQL's own count, which it keeps up to date within seconds."""
    query = (
        f"SELECT sum(idx_scan) FROM pg_stat_user_indexes WHERE relname = '{index.table}' AND indexrelname ~ '_hnsw_'"
    )
    with database.read() as session:
        return int(session.scalar(text(query)) or 0)


def is_scanned(database, index, account_id):
    before, deadline = scans(database, index), time.monotonic() + 10
    index.search(account_id, axis(0), 10)
    while scans(database, index) == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
        index.search('nobody', axis(0), 10)  # the connection tells when it is next used
    return True


@pytest.fixture
def two_accounts(index, database, monkeypatch):
    """An account with many items, and one with few that are far from all of those."""
    monkeypatch.setattr(pgvector_index, 'MANY', 1000)
    monkeypatch.setattr(pgvector_index, 'CANDIDATES', 40)  # with more it pays for more items only
    random = np.random.default_rng(0)
    near = axis(0) + 0.05 * random.normal(size=(2000, DIM))
    index.upsert([make_item(number, row, 'theirs') for number, row in enumerate(near)])
    index.upsert([make_item(4000 + place, axis(1) + place * axis(2)) for place in range(5)])
    index.build()
    with database.write() as session:
        session.execute(text(f'ANALYZE {index.table}'))
    return near / np.linalg.norm(near, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ('url', 'place'),
    [
        ('postgresql://ann:hidden@db.example.com/items?sslpassword=hidden', 'db.example.com'),
        ('postgresql://ann:hidden@db.example.com:5433/items', 'db.example.com:5433'),
        ('postgresql://ann:hidden@[::1]:5433/items', '[::1]:5433'),
        ('postgresql://ann:hidden@/items?host=/run/postgresql', '/run/postgresql'),
        ('postgresql:///items', 'the server that libpq chooses'),
    ],
)
def test_where_a_database_is_is_told_without_who_asks(url, place):
    assert place_of(make_url(url)) == f"the database 'items' at {place}"


def test_items_of_others_that_are_nearer_are_not_in_the_way(two_accounts, index, database):
    found = index.search('ours', axis(0) + axis(1), 10)
    assert sorted(hit.object_id for hit in found) == [f'p{4000 + place}' for place in range(5)]
    cosines = [1 / (2**0.5 * (1 + place**2) ** 0.5) for place in range(5)]
    assert [hit.score for hit in found] == pytest.approx(cosines, abs=1e-6)


def test_an_account_with_many_items_has_an_index_that_finds_what_comparing_with_all_finds(
    two_accounts, index, database
):
    assert is_scanned(database, index, 'theirs')
    found = expected = 0
    for query in np.random.default_rng(1).normal(size=(20, DIM)):
        nearest = {f'p{place}' for place in np.argsort(-two_accounts @ query)[:10]}
        found += len(nearest & set(ids(index, query, account_id='theirs')))
        expected += len(nearest)
    assert found >= 0.9 * expected
    index.delete('theirs', [f'p{number}' for number in range(1500)])
    assert len(ids(index, axis(0), 400, 'theirs')) == 400, 'what was deleted does not count'


def hnsw(database, index):
    """Whether each HNSW index can be used, by its name."""
    with database.read() as session:
        names = {'table': index.table, 'hnsw': f'{index.table}_hnsw_%'}
        return {row.relname: row.indisvalid for row in session.execute(text(pgvector_index._INDICES), names)}


def test_an_index_that_was_begun_and_not_finished_is_made_anew(two_accounts, index, database):
    (name,) = hnsw(database, index)
    with database.write() as session:
        session.execute(text(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass"))
    index.build()
    assert hnsw(database, index) == {name: True} and is_scanned(database, index, 'theirs')


def test_an_index_of_few_items_is_dropped(two_accounts, index, database):
    index.delete('theirs', [f'p{number}' for number in range(1400)])
    index.build()
    assert len(hnsw(database, index)) == 1, 'it has enough of them to keep it'
    index.keep_accounts({'ours'})
    index.build()
    assert hnsw(database, index) == {}


def test_what_is_there_is_not_written_again(index, database):
    items = [make_item(number, axis(number)) for number in range(3)]
    index.upsert(items)
    before = versions(database, index)
    index.sync([items[0], dataclasses.replace(items[1], text='other', revision=2), items[2]], '', None)
    after = versions(database, index)
    assert [name for name in before if before[name] != after[name]] == [('ours', 'p1')]
    assert {hit.text for hit in index.search('ours', axis(1), 10)} == {'text 0', 'other', 'text 2'}


def test_a_registry_that_was_restored_counts(index):
    """Its revisions may be behind those of the index."""
    before, after = make_item(0, axis(0), revision=5), dataclasses.replace(make_item(0, axis(1)), text='restored')
    index.upsert([before])
    index.sync([after], '', None)
    assert [(hit.text, hit.score) for hit in index.search('ours', axis(1), 1)] == [('restored', 1.0)]
    index.upsert([before])
    index.upsert([dataclasses.replace(after, id='f' * 24)])  # deleted, and added again
    assert [hit.text for hit in index.search('ours', axis(1), 1)] == ['restored']


def test_any_number_of_others_is_removed(index, database):
    with database.write() as session:  # more than a statement has parameters
        session.execute(
            text(
                f"INSERT INTO {index.table} SELECT 'gone', i::text, lpad(i::text, 24, '0'), 1, 'x', '{{}}', "
                f"'{[0.0] * DIM}' FROM generate_series(1, 70000) i"
            )
        )
    index.sync([], '', None)
    with database.read() as session:
        assert session.scalar(text(f'SELECT count(*) FROM {index.table}')) == 0


def test_all_others_of_a_range_are_removed(index):
    items = [make_item(number, axis(number)) for number in range(6)]
    index.upsert(items)
    index.sync([items[1], items[3]], items[0].id, items[3].id)
    assert sorted(ids(index, axis(0))) == ['p0', 'p1', 'p3', 'p4', 'p5']
    index.sync([], items[4].id, None)
    assert sorted(ids(index, axis(0))) == ['p0', 'p1', 'p3', 'p4']


def test_an_embedding_of_zeros_is_the_last(index):
    index.upsert([make_item(0, np.zeros(DIM)), make_item(1, axis(1)), make_item(2, -axis(1))])
    assert [(hit.object_id, hit.score) for hit in index.search('ours', axis(1), 10)] == [
        ('p1', 1),
        ('p2', -1),
        ('p0', 0),
    ]


def test_accounts_that_are_no_more_are_removed(index):
    index.upsert([make_item(0, axis(0)), make_item(1, axis(1), 'theirs'), make_item(2, axis(1), 'gone')])
    index.keep_accounts({'ours', 'theirs', 'new'})
    found = [ids(index, axis(0), account_id=name) for name in ('ours', 'theirs', 'gone')]
    assert found == [['p0'], ['p1'], []]


def test_models_and_dimensions_have_tables_of_their_own(index, vectors, database):
    others = [vectors.index('another', DIM), vectors.index('a model', 2100)]
    index.upsert([make_item(0, axis(0))])
    others[1].upsert([make_item(7, np.ones(2100))])
    assert (ids(index, axis(0)), ids(others[0], axis(0)), ids(others[1], np.ones(2100))) == (['p0'], [], ['p7'])
    assert len(tables(database)) == 3
    with database.write() as session:
        session.execute(text('CREATE TABLE of_somebody_else (id int)'))
    others[1].build()
    vectors.drop_others({index.table})
    assert tables(database) == {index.table} and inspect(database.engine).has_table('of_somebody_else')
    assert vectors.index('a model', DIM).search('ours', axis(0), 1)[0].object_id == 'p0'


def test_a_table_that_cannot_be_dropped_stays_and_is_told(index, vectors, database, caplog):
    other = vectors.index('another', DIM)
    with database.write() as session:
        session.execute(text(f'CREATE VIEW of_somebody_else AS SELECT text FROM {other.table}'))
    vectors.drop_others({index.table})
    assert tables(database) == {index.table, other.table}
    assert f'{other.table}, of a model before, stays in the index database' in caplog.text


def test_a_connection_that_is_lost_is_made_anew_and_holds_the_database(url, vectors, index, database):
    with database.write() as session:
        others = 'FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()'
        session.execute(text(f'SELECT pg_terminate_backend(pid) {others}'))
    vectors.hold()
    index.upsert([make_item(0, axis(0))])
    with pytest.raises(UnavailableError, match='Another search'):
        PgVectors(url, LOGGER)


def test_one_search_holds_the_database(url, vectors):
    with pytest.raises(UnavailableError, match='Another search has its index in the database'):
        PgVectors(url, LOGGER)
    vectors.close()
    PgVectors(url, LOGGER).close()


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


def test_a_database_that_cannot_be_used_is_told(url, tmp_path):
    with pytest.raises(RegistryError, match='FINETUNER_SEARCH_INDEX_URL is of SQLite: it takes postgresql://'):
        PgVectors(f'sqlite:///{tmp_path}/items.db', LOGGER)
    absent = make_url(url).set(database='none_such').render_as_string(hide_password=False)
    with pytest.raises(RegistryError, match='cannot be used: .*"none_such" does not exist'):
        PgVectors(absent, LOGGER)
    with pytest.raises(UnavailableError, match='cannot be reached'):
        PgVectors('postgresql://user:s3cret@127.0.0.1:1/name', LOGGER)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute('CREATE ROLE guest LOGIN')
    try:
        guest = make_url(url).set(username='guest').render_as_string(hide_password=False)
        with pytest.raises(RegistryError, match='has no pgvector .*permission denied.* superuser run CREATE EXTENSION'):
            PgVectors(guest, LOGGER)
        PgVectors(url, LOGGER).close()
        PgVectors(guest, LOGGER).close()  # now that it is there
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
        with pytest.raises(RegistryError, match='has pgvector 0.7.4, and 0.8 is needed: update it'):
            PgVectors(url, LOGGER)
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute('DROP ROLE guest')
