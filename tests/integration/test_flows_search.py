"""A search that learns: items in, queries, clicks on what was found, over REST and gRPC."""

import json

import numpy as np
import pytest
import requests
import yaml

from examples.clicks.model import write_shop_model
from examples.clicks.shop import SIMILAR, Shop
from executors.api.searching import router
from executors.search import SearchExecutor
from finetuner.documents import Document
from finetuner.excepts import AuthenticationError
from registry import Registry
from registry.names import new_id
from tests.integration.conftest import Service, wait_until
from tests.integration.test_openapi import fuzz
from tests.integration.test_tuning import Rest

ITEMS = [
    {'object_id': 'p1', 'text': 'a red apple', 'meta': {'price': 3}},
    {'object_id': 'p2', 'text': 'a green pear'},
    {'object_id': 'p3', 'text': 'a blue plum', 'meta': {'sizes': [1, 2]}},
]


@pytest.fixture(scope='module')
def shop(tmp_path_factory, tiny_model):
    service = Service('search.yml', tmp_path_factory.mktemp('search'), FINETUNER_SEARCH_MODEL=tiny_model).start()
    yield service
    service.stop()


@pytest.fixture
def api(shop):
    def call(method, path, body=None, token=shop.token, **query):
        url = f'http://127.0.0.1:{shop.http_port}/api/v1{path}'
        headers = {'Authorization': f'Bearer {token}'} if token else {}
        answer = requests.request(method, url, json=body, params=query, headers=headers, timeout=60)
        return answer.status_code, answer.json()

    return call


def test_from_items_to_a_click_on_what_was_found(shop, api):
    assert api('POST', '/search/items', {'items': ITEMS}) == (200, {'upserted': 3})
    query = {'search_query': 'a red apple', 'create_session': True, 'user_id': 'ann', 'limit': 2}
    status, found = api('POST', '/search', query)
    assert status == 200 and found['model'].endswith('/model')
    first, second = found['search_results']
    assert (first['object_id'], first['meta']) == ('p1', {'price': 3, 'text': 'a red apple'})
    assert 1 + 1e-6 > first['rank'] > second['rank']
    name = found['session_id']
    events = [{'event_id': 'e', 'object_id': 'p1'}]
    assert api('POST', '/clickstream/session/events', {'session_id': name, 'events': events}) == (200, None)
    _, session = api('GET', '/clickstream/session', session_id=name)
    assert (session['search_query'], session['user_id'], len(session['events'])) == ('a red apple', 'ann', 1)
    assert session['search_results'] == found['search_results']


def test_whole_numbers_of_items_come_back_as_they_were_sent(api):
    told = {'ean': 5901234123457, 'price': 9, 'weight': 0.5, 'text': 'a barcode'}
    assert api('POST', '/search/items', {'items': [{'object_id': 'ean', 'text': 'a barcode', 'meta': told}]})[0] == 200
    _, found = api('POST', '/search', {'search_query': 'a barcode', 'limit': 1, 'create_session': True})
    _, session = api('GET', '/clickstream/session', session_id=found['session_id'])
    for shown in (found, session):
        assert json.dumps(shown['search_results'][0]['meta'], sort_keys=True) == json.dumps(told, sort_keys=True)
    assert api('POST', '/search/items/delete', {'object_ids': ['ean']}) == (200, {'deleted': 1})


def test_what_the_account_has_is_told(api):
    api('POST', '/search/items', {'items': ITEMS})
    status, usage = api('GET', '/usage')
    assert status == 200 and usage['search_items']['count'] == 3 and usage['max_search_bytes'] > 0


def test_grpc_finds_the_same(shop, api):
    api('POST', '/search/items', {'items': ITEMS})
    (answer,) = shop.call('/search', [Document(text='a blue plum')], limit=3)
    assert answer.tags['search_results'] == api('POST', '/search', {'search_query': 'a blue plum'})[1]['search_results']
    assert answer.tags['search_results'][0]['meta'] == {'sizes': [1, 2], 'text': 'a blue plum'}


def test_items_are_replaced_and_deleted(api):
    api('POST', '/search/items', {'items': ITEMS})
    api('POST', '/search/items', {'items': [{'object_id': 'p3', 'text': 'a black fig'}]})
    _, found = api('POST', '/search', {'search_query': 'a black fig'})
    assert found['search_results'][0]['meta'] == {'text': 'a black fig'}
    assert api('POST', '/search/items/delete', {'object_ids': ['p3', 'p9']}) == (200, {'deleted': 1})
    _, found = api('POST', '/search', {'search_query': 'a black fig'})
    assert {result['object_id'] for result in found['search_results']} == {'p1', 'p2'}


@pytest.fixture
def other(shop):
    """The token of an account that has nothing."""
    with Registry.open(shop.folder / 'home') as registry:
        account = registry.create_account(f'other-{new_id()}').id
        yield registry.create_token(account, 'test')
        registry.delete_account(account)


SHOWN = {'search_query': 'a red apple', 'create_session': True, 'session_id': 'shown'}
# by path, what another account sends with the ids of the first one, and what it is answered
ROUTES = {
    '/search/items/delete': [({'object_ids': ['p1', 'p2', 'p3']}, {'deleted': 0})],
    '/search': [
        ({'search_query': 'a red apple'}, {'search_results': [], 'session_id': None}),
        ({**SHOWN, 'search_query': 'theirs'}, {'search_results': [], 'session_id': 'shown'}),
    ],
    '/search/items': [({'items': [{'object_id': 'p1', 'text': 'theirs'}]}, {'upserted': 1})],
}
# the same over gRPC: endpoint, documents, parameters, answer
ENDPOINTS = [
    ('/delete_items', [], {'object_ids': ['p1', 'p2', 'p3']}, {'deleted': 0}),
    ('/search', [Document(text='a red apple')], {}, {'search_results': [], 'session_id': None}),
    (
        '/search',
        [Document(text='theirs')],
        {'create_session': True, 'session_id': 'shown'},
        {'search_results': [], 'session_id': 'shown'},
    ),
    ('/upsert', [Document(id='p1', text='theirs')], {}, {'upserted': 1}),
]


def test_every_route_is_in_the_table():
    assert {route.path for route in router.routes} == ROUTES.keys()
    own = {name for name in SearchExecutor.requests_by_class['SearchExecutor'] if name.startswith('/')}
    assert own - {'/default'} == {endpoint for endpoint, *_ in ENDPOINTS}


def has(api, token=None):
    """All that an account finds, and its session."""
    token = {} if token is None else {'token': token}
    _, found = api('POST', '/search', {'search_query': 'a red apple'}, **token)
    return found['search_results'], api('GET', '/clickstream/session', session_id='shown', **token)


def test_nothing_of_another_account_is_seen_or_changed_over_rest(api, other):
    api('POST', '/search/items', {'items': ITEMS})
    api('POST', '/search', SHOWN)
    before = has(api)
    for path, cases in ROUTES.items():
        for body, expected in cases:
            status, answer = api('POST', path, body, token=other)
            assert status == 200 and expected.items() <= answer.items(), path
            assert has(api) == before, path
            for token in (None, 'x' * 40):
                assert api('POST', path, body, token=token)[0] == 401, path
    found, (_, session) = has(api, other)
    assert [(hit['object_id'], hit['meta']) for hit in found] == [('p1', {'text': 'theirs'})]
    assert session['search_query'] == 'theirs'


def test_nothing_of_another_account_is_seen_or_changed_over_grpc(shop, api, other):
    api('POST', '/search/items', {'items': ITEMS})
    api('POST', '/search', SHOWN)
    before = has(api)
    for endpoint, documents, parameters, expected in ENDPOINTS:
        (answer,) = shop.call(endpoint, documents, token=other, **parameters)
        assert expected.items() <= answer.tags.items(), endpoint
        assert has(api) == before, endpoint
        for token in (None, 'x' * 40):
            with pytest.raises(AuthenticationError):
                shop.call(endpoint, documents, token=token, **parameters)


@pytest.mark.parametrize(
    ('path', 'body', 'sentence'),
    [
        ('/search', {}, 'search_query'),
        ('/search', {'search_query': ''}, 'search_query'),
        ('/search', {'search_query': ' '}, "'search_query': it is nothing but white space"),
        ('/search', {'search_query': 'x', 'session_id': 'mine'}, 'session_id'),
        ('/search', {'search_query': 'x', 'user_id': 'mine'}, 'create_session'),
        ('/search', {'search_query': 'x', 'limit': 0}, 'limit'),
        (
            '/search/items',
            {'items': [{'object_id': 'a', 'text': 'x', 'meta': {'n': [2**53]}}]},
            'n[0] is a whole number of more than 53 bits',
        ),
        ('/search', {'search_query': 'x', 'filter': {}}, 'filter'),
        ('/search', {'search_query': 'x', 'create_session': 'yes'}, 'create_session'),
        ('/search/items', {'items': []}, 'items'),
        ('/search/items', {'items': [{'object_id': 'a', 'text': ''}]}, 'text'),
        ('/search/items', {'items': [{'object_id': 'a', 'text': ' '}]}, 'it is nothing but white space'),
        (
            '/search/items',
            {'items': [{'object_id': 'a', 'text': 'x', 'meta': {'text': 'y'}}]},
            "meta': its 'text' is not that of the item",
        ),
        ('/search/items', {'items': [{'object_id': '', 'text': 'x'}]}, 'object_id'),
        ('/search/items', {'items': [{'object_id': 'a', 'text': 'x', 'meta': {'x': 'y' * 70_000}}]}, 'meta of'),
        ('/search/items/delete', {'object_ids': 'p1'}, 'object_ids'),
    ],
)
def test_what_is_wrong_is_told(api, path, body, sentence):
    status, answer = api('POST', path, body)
    assert status in (400, 422) and sentence in str(answer['detail'])


def test_answers_are_what_the_description_says(shop):
    fuzz(shop, '--include-path-regex', 'search|upsert|delete_items', '--phases', 'examples,coverage', timeout=200)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_learns_from_the_clicks_on_what_it_found(start_service, tmp_path):
    catalogue = Shop()
    model = write_shop_model(catalogue, tmp_path / 'model')
    method = {
        'name': 'shop',
        'model': str(model),
        'items': {'loader': 'inline', 'fields': ['text']},
        'clicks': {'test_share': 0.4, 'position_bias': 'none'},
        'loss': 'MultipleNegativeRankingLoss',
        'fit': {'epochs': 6, 'batch_size': 64, 'learning_rate': 2e-3, 'device': 'cpu'},
        'search': {'evaluations': 1},
    }
    (tmp_path / 'methods').mkdir()
    (tmp_path / 'methods' / 'shop.yml').write_text(yaml.safe_dump(method))
    service = start_service(
        'search.yml',
        FINETUNER_METHODS=tmp_path / 'methods',
        FINETUNER_ARTIFACT='shop@production',
        FINETUNER_SEARCH_MODEL=model,
    )
    api = Rest(service)
    items = [{'object_id': product.object_id, 'text': product.title} for product in catalogue.products]
    assert api('POST', '/search/items', {'items': items}) == (200, {'upserted': len(items)})
    places = {product.object_id: number for number, product in enumerate(catalogue.products)}

    def search(query, **options):
        """What is found, and which of it the user wants."""
        status, found = api('POST', '/search', {'search_query': query.text, **options})
        assert status == 200
        wanted = catalogue.relevance(query) >= SIMILAR
        return found, [hit['object_id'] for hit in found['search_results'] if wanted[places[hit['object_id']]]]

    random = np.random.default_rng(0)
    order = random.permutation(len(catalogue.queries))
    fresh, searched = ([catalogue.queries[number] for number in part] for part in (order[:50], order[50:]))
    before = np.mean([len(search(query)[1]) for query in fresh])
    for number in random.integers(len(searched), size=600):
        found, wanted = search(searched[number], limit=40, create_session=True)
        assert found['model'] == str(model)
        events = [{'event_id': object_id, 'object_id': object_id} for object_id in wanted]
        body = {'session_id': found['session_id'], 'events': events}
        assert api('POST', '/clickstream/session/events', body) == (200, None)
    task = api('POST', '/fine-tuning/task', {'fine_tuning_method': 'shop'})[1]
    done = api.wait_for(task['id'], 'done', 'error')
    assert done['status'] == 'done' and done['promoted'] is True, done
    assert api('GET', '/clickstream/internal/batch', batch_id=done['batch_id'])[1]['sessions'] == 600
    artifact = done['best_model_url'].rpartition('/')[2]
    wait_until(lambda: search(fresh[0])[0]['model'] == artifact, 60, 'the search following the alias')
    after = np.mean([len(search(query)[1]) for query in fresh])
    assert after > 1.5 * before, 'of the ten that are found, more are wanted, by queries that nobody has searched for'
