"""A search that learns: items in, queries, clicks on what was found, over REST and gRPC."""

import numpy as np
import pytest
import requests
import yaml

from examples.clicks.model import write_shop_model
from examples.clicks.shop import SIMILAR, Shop
from finetuner.documents import Document
from finetuner.excepts import AuthenticationError
from registry import Registry
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


def test_another_account_finds_nothing(shop, api):
    with Registry.open(shop.folder / 'home') as registry:
        other = registry.create_token(registry.create_account('other').id, 'test')
    assert api('POST', '/search', {'search_query': 'apple'}, token=other)[1]['search_results'] == []
    for token in (None, 'x' * 40):
        assert api('POST', '/search', {'search_query': 'apple'}, token=token)[0] == 401
    with pytest.raises(AuthenticationError):
        shop.call('/search', [Document(text='apple')], token=None)


@pytest.mark.parametrize(
    ('path', 'body', 'sentence'),
    [
        ('/search', {}, 'search_query'),
        ('/search', {'search_query': ''}, 'search_query'),
        ('/search', {'search_query': 'x', 'limit': 0}, 'limit'),
        ('/search', {'search_query': 'x', 'filter': {}}, 'filter'),
        ('/search', {'search_query': 'x', 'create_session': 'yes'}, 'create_session'),
        ('/search/items', {'items': []}, 'items'),
        ('/search/items', {'items': [{'object_id': 'a', 'text': ''}]}, 'text'),
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
