"""Fine-tuning tasks over REST, as Embedding Studio answered them, save where we differ; and the whole way of clicks."""

import re
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import numpy as np
import pytest
import requests
import yaml

from examples.clicks.model import write_shop_model
from examples.clicks.shop import Shop
from examples.clicks.users import visits
from finetuner.documents import Document
from finetuner.inference import load_engine
from tests.elsewhere import encode_elsewhere
from tests.integration.conftest import wait_until


class Rest:
    """Calls of `/api/v1` that answer with the status and the body."""

    def __init__(self, service):
        self.base = f'http://127.0.0.1:{service.http_port}/api/v1'
        self.session = requests.Session()
        self.session.headers['Authorization'] = f'Bearer {service.token}'

    def __call__(self, method, path, body=None, **query):
        answer = self.session.request(method, self.base + path, json=body, params=query, timeout=120)
        return answer.status_code, answer.json()

    def visit(self, visit):
        assert self('POST', '/clickstream/session', visit.session) == (200, None)
        events = {'session_id': visit.session['session_id'], 'events': visit.events}
        assert self('POST', '/clickstream/session/events', events) == (200, None)

    def wait_for(self, task_id, *statuses, seconds=280):
        def reached():
            _, task = self('GET', f'/fine-tuning/task/{task_id}')
            return task if task['status'] in statuses else None

        return wait_until(reached, seconds, f'the task {task_id} becoming {" or ".join(statuses)}')


@pytest.fixture(scope='module')
def api(service):
    api = Rest(service)
    # nothing collects, whatever other tests have left
    api('POST', '/clickstream/internal/batch/release', {'release_id': str(uuid.uuid4())})
    yield api
    for task in api('GET', '/fine-tuning/task')[1]:
        api('PUT', f'/fine-tuning/task/{task["id"]}/cancel')
    wait_until(lambda: api('DELETE', '/experiments/fine-tuning')[0] == 200, 60, 'the end of the runs of tasks')


def test_a_task_from_its_post_to_its_end(api):
    body = {'fine_tuning_method': 'text-to-text', 'metadata': {'who': 'ann'}, 'unknown': 1}
    status, task = api('POST', '/fine-tuning/task', body)
    assert status == 200 and (task['status'], task['fine_tuning_method']) == ('pending', 'text-to-text')
    assert task['metadata'] == {'who': 'ann'} and re.fullmatch('[0-9a-f]{24}', task['id'])
    assert task.keys() == {
        'id', 'status', 'fine_tuning_method', 'metadata', 'created_at', 'updated_at', 'details', 'run_name',
    }, 'what is not known is left out'  # fmt: skip
    assert datetime.fromisoformat(task['created_at']).tzinfo is None
    failed = api.wait_for(task['id'], 'error')
    assert failed['error'] == 'There is no collecting batch', 'an error has its reason'
    assert 'best_model_url' not in failed and 'promoted' not in failed
    assert api('GET', f'/experiments/fine-tuning/runs/{task["run_name"]}')[1]['status'] == 'FAILED'
    path = f'/fine-tuning/task/{task["id"]}'
    assert api('PUT', f'{path}/restart') == (200, {'id': task['id'], 'status': 'pending'})
    for _ in range(2):
        assert api('PUT', f'{path}/cancel') == (200, {'id': task['id'], 'status': 'canceled'})
    assert api('GET', path)[1]['status'] == 'canceled'
    assert api('GET', '/fine-tuning/task', status='canceled', limit=1)[1][0]['id'] == task['id']
    assert api('GET', '/fine-tuning/task', status='done') == (200, [])
    assert api('GET', '/fine-tuning/task', skip=1000) == (200, [])


def test_twenty_posts_of_one_key_at_once_make_one_task(api):
    key = uuid.uuid4()
    before = len(api('GET', '/fine-tuning/task')[1])
    with ThreadPoolExecutor(20) as pool:
        posts = [
            pool.submit(
                api, 'POST', '/fine-tuning/task', {'fine_tuning_method': 'text-to-text', 'idempotency_key': text}
            )
            for text in [str(key), key.hex] * 10
        ]
    found = [post.result() for post in posts]
    assert {status for status, _ in found} == {200} and len({task['id'] for _, task in found}) == 1
    assert found[0][1]['idempotency_key'] == str(key), 'with dashes, however it came'
    assert len(api('GET', '/fine-tuning/task')[1]) == before + 1
    other = {'fine_tuning_method': 'text-to-image', 'metadata': {'who': 'bob'}, 'idempotency_key': str(key)}
    status, same = api('POST', '/fine-tuning/task', other)
    assert (status, same['id'], same['fine_tuning_method']) == (200, found[0][1]['id'], 'text-to-text')
    assert 'metadata' not in same, 'it is as it was asked for first'
    api('PUT', f'/fine-tuning/task/{found[0][1]["id"]}/cancel')


def test_what_is_wrong_is_refused_in_a_sentence(api):
    status, answer = api('POST', '/fine-tuning/task', {'fine_tuning_method': 'text-to-txt'})
    assert status == 404 and "unknown fine-tuning method 'text-to-txt': did you mean text-to-text" in answer['detail']
    missing = 404, {'detail': 'Task with ID `nobody` not found'}
    assert api('GET', '/fine-tuning/task/nobody') == missing
    assert api('PUT', '/fine-tuning/task/nobody/cancel') == missing
    assert api('PUT', '/fine-tuning/task/nobody/restart') == missing
    method = {'fine_tuning_method': 'text-to-text'}
    assert api('POST', '/fine-tuning/task', {**method, 'batch_id': 'x'})[0] == 404
    for body in ({}, {**method, 'idempotency_key': 'no uuid'}, {**method, 'metadata': 3}):
        assert api('POST', '/fine-tuning/task', body)[0] == 422
    assert api('GET', '/fine-tuning/task', status='failed')[0] == 422
    assert api('GET', '/fine-tuning/task', limit=1000)[0] == 200
    assert api('GET', '/fine-tuning/task', limit=1001)[0] == 422
    assert api('DELETE', '/fine-tuning/task')[0] == api('DELETE', '/fine-tuning/task/nobody')[0] == 405


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_clicks_to_a_model_that_is_served(start_service, tmp_path):
    shop = Shop()
    (tmp_path / 'methods').mkdir()
    method = {
        'name': 'shop',
        'model': str(write_shop_model(shop, tmp_path / 'model')),
        'items': {'loader': 'inline'},
        'clicks': {'test_share': 0.4},
        'loss': 'MultipleNegativeRankingLoss',
        'fit': {'epochs': 6, 'batch_size': 64, 'learning_rate': 2e-3, 'device': 'cpu'},
        'search': {'evaluations': 1},
    }
    (tmp_path / 'methods' / 'shop.yml').write_text(yaml.safe_dump(method))
    broken = {**method, 'name': 'broken', 'fit': {**method['fit'], 'learning_rate': 1e30}}
    (tmp_path / 'methods' / 'broken.yml').write_text(yaml.safe_dump(broken))
    service = start_service(
        'finetuner.yml',
        FINETUNER_METHODS=tmp_path / 'methods',
        FINETUNER_ARTIFACT='shop@production',
        FINETUNER_PUBLIC_URL='https://shop.example/models/',
    )
    api = Rest(service)
    for visit in visits(shop, 1000):
        api.visit(visit)
    key = str(uuid.uuid4())
    task = api('POST', '/fine-tuning/task', {'fine_tuning_method': 'shop', 'idempotency_key': key})[1]
    api.wait_for(task['id'], 'processing')
    service.kill_workers()  # another one goes on
    done = api.wait_for(task['id'], 'done', 'error')
    assert done['status'] == 'done', done
    assert done['promoted'] is True and done['details'].startswith('Promoted to shop@production: ndcg_at_10')
    assert done['metrics']['after']['ndcg_at_10'] > done['metrics']['before']['ndcg_at_10']
    batch = api('GET', '/clickstream/internal/batch', batch_id=done['batch_id'])[1]
    assert (batch['release_id'], batch['sessions']) == (key, 1000)

    artifact = api('GET', '/aliases/shop@production')[1]['artifact_id']
    assert done['best_model_url'] == f'https://shop.example/models/api/v1/artifacts/{artifact}'
    url = f'{api.base}/artifacts/{artifact}'  # as a proxy would ask for it
    assert requests.get(url, timeout=60).status_code == 401
    (tmp_path / 'best.zip').write_bytes(api.session.get(url, timeout=60).content)
    assert zipfile.ZipFile(tmp_path / 'best.zip').testzip() is None
    expected = load_engine(tmp_path / 'best.zip').encode_texts(['stay dry, red'])
    (tmp_path / 'elsewhere').mkdir()
    found = encode_elsewhere(tmp_path / 'best.zip', ['stay dry, red'], tmp_path / 'elsewhere')
    assert np.allclose(found, expected, atol=1e-5)

    def served():
        answer = service.post('/encode', [{'text': 'stay dry, red'}])
        return answer.json()['data'][0]['embedding'] if answer.status_code == 200 else None

    embedding = wait_until(served, 60, 'the encoder following the alias')
    assert np.allclose(embedding, expected[0], atol=1e-5)
    assert np.allclose(service.call('/encode', [Document(text='stay dry, red')]).embeddings, expected, atol=1e-5)
    body = {'fine_tuning_method': 'broken', 'batch_id': done['batch_id']}
    failed = api.wait_for(api('POST', '/fine-tuning/task', body)[1]['id'], 'done', 'error')
    assert failed['status'] == 'error' and 'lower learning_rate' in failed['error']
    assert 'best_model_url' not in failed and 'promoted' not in failed
    assert api('GET', '/fine-tuning/task', status='done') == (200, [done]), 'every one that is done has a model'
    assert api('PUT', f'/fine-tuning/task/{task["id"]}/cancel')[1]['status'] == 'canceled'
    assert api('GET', '/aliases/shop@production')[0] == 200, 'what was promoted stays'
