"""A search by meaning, without a Flow: items come and go, a promoted model takes over, sessions are learned from."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest
from sqlalchemy import inspect, make_url

from executors import following
from executors.parameters import DeleteItemsParameters, SearchParameters, TokenParameters
from executors.search import SearchExecutor, _within_room
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import AuthenticationError, DataError, NotFoundError, ParameterError, RegistryError
from finetuner.inference import load_engine
from registry import Registry
from registry.database import Database
from registry.search_items import NewItem

ALIAS = 'shop@production'
TEXTS = {'p1': 'my card is lost', 'p2': 'where is the card', 'p3': 'the the the'}


@pytest.fixture
def token():
    with Registry.open() as registry:
        return registry.create_token(registry.get_account().id, 'test')


@pytest.fixture(params=['memory', 'pgvector'])
def index_url(request):
    """Where the index is: the value is that of `FINETUNER_SEARCH_INDEX_URL`."""
    return request.getfixturevalue('new_postgresql')('template0') if request.param == 'pgvector' else ''


@pytest.fixture
def executor(tiny_model, token, index_url, monkeypatch):
    monkeypatch.setattr(following, 'INTERVAL', 0.05)
    monkeypatch.setenv('FINETUNER_SEARCH_INDEX_URL', index_url)
    executor = SearchExecutor(artifact=ALIAS, model=str(tiny_model), token=token)
    yield executor
    executor.close()


@pytest.fixture
def account(executor):
    return executor.registry.get_account().id


@pytest.fixture
def call(executor, token):
    def post(name, documents=(), token=token, **parameters):
        models = {'upsert': TokenParameters, 'delete_items': DeleteItemsParameters, 'search': SearchParameters}
        given = models[name](**{'token': token, **parameters})
        return getattr(executor, name)(DocumentArray(documents), parameters=given)[0].tags

    return post


@pytest.fixture
def search(call):
    def find(text, **parameters):
        return call('search', [Document(text=text)], **parameters)

    return find


def add(call, texts=TEXTS):
    return call('upsert', [Document(id=name, text=text, tags={'price': 3}) for name, text in texts.items()])


def ids(found):
    return [result['object_id'] for result in found['search_results']]


def test_what_is_nearest_is_found_first(call, search, tiny_model):
    assert search('anything')['search_results'] == []
    assert add(call) == {'upserted': 3}
    found = search('my card is lost')
    engine = load_engine(tiny_model)
    texts = engine.encode_texts(list(TEXTS.values()))
    cosines = texts @ engine.encode_texts(['my card is lost'])[0]
    order = np.argsort(-cosines)
    assert ids(found) == [list(TEXTS)[place] for place in order] and ids(found)[0] == 'p1'
    assert [result['rank'] for result in found['search_results']] == pytest.approx(list(cosines[order]), abs=1e-5)
    assert found['search_results'][0]['meta'] == {'price': 3, 'text': 'my card is lost'}
    assert (found['session_id'], found['model']) == (None, str(tiny_model))
    assert ids(search('my card is lost', limit=1)) == ['p1']


def test_items_are_replaced_and_deleted(call, search):
    add(call)
    add(call, {'p3': 'my card is lost now', 'p1': 'another thing altogether'})
    assert ids(search('my card is lost now'))[0] == 'p3' and len(ids(search('x'))) == 3
    assert call('delete_items', object_ids=['p3', 'nothing']) == {'deleted': 1}
    assert set(ids(search('x'))) == {'p1', 'p2'}


def test_ids_are_cleaned_before_items_are_deleted(call, search):
    add(call)
    assert call('delete_items', object_ids=['p1', 'p\0']) == {'deleted': 1}
    assert set(ids(search('x'))) == {'p2', 'p3'}


def test_a_text_that_the_model_cannot_embed_is_refused_and_harms_no_other(executor, account, call, search, monkeypatch):
    add(call)
    engine = executor.searched.engine
    encode = engine.encode_texts

    def overflow(texts):
        return np.where([['bad' in text] for text in texts], np.nan, encode(texts))

    monkeypatch.setattr(engine, 'encode_texts', overflow)
    with pytest.raises(DataError, match="no embedding of the text of 'p9': numbers overflow"):
        call('upsert', [Document(id='p8', text='fine'), Document(id='p9', text='bad')])
    assert set(ids(search('x'))) == {'p1', 'p2', 'p3'}
    nothing = np.full(24, np.nan, np.float32).tobytes()
    executor.registry.items.upsert(account, executor.searched.index.model, [NewItem('p4', 'bad', None, nothing)])
    index = executor._make_index(engine, executor.searched.index.model)
    assert len(index.search(account, np.ones(24, np.float32), 9)) == 3


def test_items_of_accounts_that_are_no_more_leave_the_index(executor, account, call):
    add(call)
    gone = executor.registry.create_account('gone').id
    other = executor.registry.create_token(gone, 'other')
    call('upsert', [Document(id='p1', text='theirs')], token=other)
    executor.registry.delete_account(gone)
    executor._look_after(None)
    query = np.ones(24, np.float32)
    assert executor.searched.index.search(gone, query, 9) == []
    assert len(executor.searched.index.search(account, query, 9)) == 3


def test_what_is_shown_becomes_a_session(executor, account, call, search):
    add(call)
    found = search('card', create_session=True, user_id='ann', limit=2)
    kept = executor.registry.clicks.get_session(account, found['session_id'])
    assert (kept.search_query, kept.user_id) == ('card', 'ann')
    assert [result.object_id for result in kept.search_results] == ids(found)
    assert kept.search_results[0].meta['text'] == TEXTS[ids(found)[0]]
    assert kept.search_results[0].rank == found['search_results'][0]['rank']
    assert search('card', create_session=True, session_id='mine')['session_id'] == 'mine'
    with pytest.raises(RegistryError, match='session_id is'):
        search('card', create_session=True, session_id='x' * 300)


def test_an_id_is_of_a_session_that_is_made(executor, account, search):
    for name in ('session_id', 'user_id'):
        with pytest.raises(ParameterError, match=f"'{name}': it is of the session that create_session makes"):
            search('card', **{name: 'mine'})
    with pytest.raises(NotFoundError):
        executor.registry.clicks.get_session(account, 'mine')


def test_a_session_is_of_one_query(executor, account, call, search):
    add(call)
    first = search('card', create_session=True, session_id='mine')
    with pytest.raises(
        RegistryError, match="session 'mine' is of another query: give this one a session_id of its own"
    ):
        search('lost', create_session=True, session_id='mine')
    assert search('card', create_session=True, session_id='mine') == first
    kept = executor.registry.clicks.get_session(account, 'mine')
    assert (kept.search_query, [result.object_id for result in kept.search_results]) == ('card', ids(first))


def test_a_query_may_have_characters_that_are_not_kept(search):
    """A front end repeats its call: the query is compared as it is kept."""
    for _ in range(2):
        assert search('ca\0rd', create_session=True, session_id='mine')['session_id'] == 'mine'


def test_a_tag_does_not_take_the_place_of_the_text(call, search):
    add(call)
    found = search('my card is lost', limit=1)['search_results'][0]['meta']
    with pytest.raises(DataError, match=r"document 1 \(id 'b'\) has a tag 'text' that is not its text"):
        call('upsert', [Document(id='a', text='x'), Document(id='b', text='x', tags={'text': 'y'})])
    assert call('upsert', [Document(id='p1', text=found['text'], tags=found)]) == {'upserted': 1}
    assert search('my card is lost', limit=1)['search_results'][0]['meta'] == found


@pytest.mark.parametrize('blank', [' ', '\n\t ', '\u3000\u00a0'])
def test_blank_texts_and_queries_are_refused(call, search, blank):
    with pytest.raises(DataError, match=r"document 0 \(id 'a'\) has no text"):
        call('upsert', [Document(id='a', text=blank)])
    with pytest.raises(DataError, match='send one document, whose text is the query'):
        search(blank)


def test_the_log_says_where_the_index_is(index_url, tiny_model, token, monkeypatch):
    lines = []
    monkeypatch.setattr(logging.Logger, 'info', lambda logger, line, *arguments: lines.append(line))
    SearchExecutor(artifact=ALIAS, model=str(tiny_model), token=token, index_url=index_url).close()
    [line] = [line for line in lines if 'the index is in' in line]
    where = f'the database {make_url(index_url).database!r} at ' if index_url else 'the memory of this process'
    assert line.startswith(f'searching by {tiny_model}; the index is in {where}')
    assert '@' not in line


def test_what_is_no_item_or_no_query_is_refused(call, search):
    with pytest.raises(DataError, match=r"document 1 \(id 'b'\) has no text"):
        call('upsert', [Document(id='a', text='x'), Document(id='b')])
    for documents in ([], [Document(text='')], [Document(text='a'), Document(text='b')]):
        with pytest.raises(DataError, match='send one document, whose text is the query'):
            call('search', documents)
    assert search('x')['search_results'] == []
    for name, parameters in (('upsert', {}), ('search', {}), ('delete_items', {'object_ids': []})):
        with pytest.raises(AuthenticationError):
            call(name, [Document(text='x')], token=None, **parameters)


def test_another_account_finds_and_changes_nothing(executor, call, search):
    add(call)
    other = executor.registry.create_token(executor.registry.create_account('other').id, 'other')
    assert search('my card', token=other)['search_results'] == []
    assert call('delete_items', token=other, object_ids=['p1']) == {'deleted': 0}
    call('upsert', [Document(id='p1', text='theirs')], token=other)
    assert ids(search('x', token=other)) == ['p1'] and len(ids(search('x'))) == 3
    assert search('my card is lost', limit=1)['search_results'][0]['meta']['text'] == TEXTS['p1']


def test_items_outlive_the_process(executor, call, tiny_model, token):
    add(call)
    executor.close()
    again = SearchExecutor(artifact=ALIAS, model=str(tiny_model), token=token)
    try:
        assert len(again.searched.index.search(again.registry.get_account().id, np.ones(24, np.float32), 9)) == 3
    finally:
        again.close()


def promote(registry, account, artifact):
    run, _ = registry.create_run(account, 'shop', f'run-{time.monotonic_ns()}', {'model': 'm'})
    registry.start_run(run.id, 'host:1')
    registry.finish_run(run.id, artifact, {}, {}, alias=ALIAS)
    return run.artifact_id


def test_what_is_deleted_while_a_model_takes_over_is_noted_under_the_lock_alone(
    executor, account, call, tiny_artifact, monkeypatch
):
    changes = []

    class Watched(SearchExecutor):
        def __setattr__(self, name, value):
            if name == '_deleted':
                changes.append(self._writing.locked())
            super().__setattr__(name, value)

    add(call)
    monkeypatch.setattr(executor, '__class__', Watched)
    promote(executor.registry, account, tiny_artifact)
    deadline = time.monotonic() + 20
    while len(changes) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert changes == [True, True]


def tables(url):
    """How many models have a table in the database."""
    if not url:
        return 0
    database = Database(url)
    try:
        return len(inspect(database.engine).get_table_names())
    finally:
        database.close()


def test_a_promoted_model_takes_over_and_what_came_meanwhile_is_there(
    executor, account, call, search, tiny_artifact, index_url, request, monkeypatch
):
    add(call)
    make, entered, go_on = executor._make_index, threading.Event(), threading.Event()

    def slowly(engine, model):
        index = make(engine, model)
        entered.set()
        assert go_on.wait(20)
        return index

    monkeypatch.setattr(executor, '_make_index', slowly)
    artifact_id = promote(executor.registry, account, tiny_artifact)
    assert entered.wait(20)
    assert search('my card is lost')['model'] != artifact_id, 'the model before answers'
    add(call, {'p4': 'my card is lost again', 'p2': 'where is it'})
    call('delete_items', object_ids=['p3'])
    go_on.set()
    deadline = time.monotonic() + 20
    while (found := search('my card is lost again'))['model'] != artifact_id:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert set(ids(found)) == {'p1', 'p2', 'p4'} and ids(found)[0] == 'p4'
    assert {item.model for item in executor.registry.items.read()} == {artifact_id}
    texts = {result['object_id']: result['meta']['text'] for result in found['search_results']}
    assert texts['p2'] == 'where is it'
    kind = request.node.callspec.params['index_url']
    assert tables(index_url) == {'pgvector': 2, 'memory': 0}[kind]
    executor._look_after(None)
    assert tables(index_url) == {'pgvector': 2, 'memory': 0}[kind], 'a search may be at work in the one before'
    executor._look_after(executor.searched)
    assert tables(index_url) == {'pgvector': 1, 'memory': 0}[kind]
    assert set(ids(search('my card is lost again'))) == {'p1', 'p2', 'p4'}


def test_a_session_keeps_of_large_results_what_it_has_room_for():
    letters = {'a': 'ж', 'b': 'ж', 'c': 'ж', 'd': 'x'}
    results = [{'object_id': name, 'rank': 0.5, 'meta': {'text': text * 15_000}} for name, text in letters.items()]
    kept = _within_room(results)
    assert kept[:2] == results[:2] and [result['meta'] for result in kept[2:]] == [None, None]
    assert [result['object_id'] for result in kept] == ['a', 'b', 'c', 'd']
    with Registry.open() as registry:
        registry.clicks.register_session(registry.get_account().id, 's', 'q', kept)
