"""A tiny model over gRPC and HTTP, in one process and in two: what comes back, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

from finetuner import EncodeClient
from finetuner.client.channel import Connection
from finetuner.client.transport import make_request
from finetuner.documents import Document
from finetuner.excepts import ArtifactNotFoundError, DataError, FinetunerServerError, ParameterError
from finetuner.inference import load_engine
from tests.integration.conftest import Service, free_ports

TEXTS = [f'{fruit} {number}' for number in range(8) for fruit in ('fig', 'apple pie', 'a plum and a pear')]


@pytest.fixture(scope='module', params=['serve.yml', pytest.param('encode.yml', marks=pytest.mark.slow)])
def serving(request, tmp_path_factory, tiny_model):
    [port] = free_ports(1)
    service = Service(
        request.param,
        tmp_path_factory.mktemp('serving'),
        FINETUNER_ARTIFACT=tiny_model,
        FINETUNER_METRICS_PORT=port,
        FINETUNER_RATE_LIMIT=0,
    ).start()
    service.metrics_port = port
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope='module')
def expected(tiny_model):
    return load_engine(tiny_model).encode_texts(TEXTS)


def ask(service, text, **parameters):
    return service.call('/encode', [Document(text=text)], token=None, **parameters)[0]


def test_callers_at_the_same_time_get_their_own_answers(serving, expected):
    with ThreadPoolExecutor(len(TEXTS)) as pool:
        answers = list(pool.map(lambda text: ask(serving, text), TEXTS))
        posted = list(pool.map(lambda text: serving.post('/encode', [{'text': text}], token=None).json(), TEXTS))
    assert [answer.text for answer in answers] == TEXTS
    np.testing.assert_allclose([answer.embedding for answer in answers], expected, atol=1e-5)
    np.testing.assert_allclose([answer['data'][0]['embedding'] for answer in posted], expected, atol=1e-5)


def test_parameters_are_checked_and_described(serving):
    wrong = {'truncate_dim': 0, 'on_error': 'ignore'}
    response = serving.post('/encode', [{'text': 'x'}], token=None, **wrong)
    assert response.status_code == 422
    sentence = response.json()['detail']
    assert sentence.startswith("parameters: 'on_error': input should be 'raise' or 'tag', got 'ignore'; 'truncate_dim'")
    with pytest.raises(Exception, match="parameters: 'on_error': input should be") as raised:
        ask(serving, 'x', **wrong)
    assert str(raised.value) == sentence
    schema = requests.get(f'http://127.0.0.1:{serving.http_port}/openapi.json', timeout=60).json()
    body = schema['paths']['/encode']['post']['requestBody']['content']['application/json']['schema']
    told = body['properties']['parameters']['properties']
    assert {'return_content', 'on_error', 'truncate_dim', 'normalize', 'timeout'} <= set(told)
    assert len(ask(serving, 'x', truncate_dim=8).embedding) == 8


def test_a_message_that_cannot_be_read_is_refused_and_nothing_of_it_comes_back(serving):
    request = make_request('/encode', {}, b'\xff' * 100_000)
    answer = Connection(f'grpc://127.0.0.1:{serving.port}').call(request, timeout=60)
    assert answer.header.status.description.startswith('the documents of the message cannot be read')
    assert answer.ByteSize() < 10_000
    assert ask(serving, 'fine').embedding is not None


def test_content_comes_back_only_when_it_is_asked_for(serving):
    """Over HTTP and gRPC alike."""
    sent = {'id': 'a', 'text': 'fig', 'tags': {'kept': 1}, 'blob': b'\x00\xff', 'tensor': np.ones(2, np.float32)}
    posted = {**sent, 'blob': base64.b64encode(sent['blob']).decode(), 'tensor': [1.0, 1.0]}
    [bare] = serving.call('/encode', [Document(**sent)], token=None)
    [bare_json] = serving.post('/encode', [posted], token=None).json()['data']
    assert (bare.id, bare.text, bare.tags, bare.blob, bare.tensor) == ('a', 'fig', {'kept': 1}, None, None)
    for name in ('id', 'text', 'tags'):
        assert bare_json[name] == sent[name]
    assert bare_json.get('blob') is None and bare_json.get('tensor') is None and not bare_json.get('chunks')
    np.testing.assert_allclose(bare_json['embedding'], bare.embedding, atol=1e-6)
    [whole] = serving.call('/encode', [Document(**sent)], token=None, return_content=True)
    [whole_json] = serving.post('/encode', [posted], token=None, return_content=True).json()['data']
    assert whole.blob == sent['blob'] and whole.tensor.tolist() == [1, 1]
    assert (whole_json['blob'], whole_json['tensor']) == (posted['blob'], [1.0, 1.0])


def test_answers_come_in_the_order_of_the_documents_whatever_their_ids(serving, expected):
    sent = [Document(id=f'id {row % 3}', text=text) for row, text in enumerate(TEXTS)]
    posted = [{'id': document.id, 'text': document.text} for document in sent]
    answers = serving.call('/encode', sent, token=None)
    in_json = serving.post('/encode', posted, token=None).json()['data']
    assert [(answer.id, answer.text) for answer in answers] == [(document.id, document.text) for document in sent]
    assert [{'id': answer['id'], 'text': answer['text']} for answer in in_json] == posted
    np.testing.assert_allclose([answer.embedding for answer in answers], expected, atol=1e-5)
    np.testing.assert_allclose([answer['embedding'] for answer in in_json], expected, atol=1e-5)


def test_a_parameter_may_be_for_one_executor(serving):
    """As Jina writes it: the name of the executor, and two underscores."""
    assert len(ask(serving, 'fig', encoder__truncate_dim=8).embedding) == 8
    assert len(ask(serving, 'fig', truncate_dim=4, encoder__truncate_dim=8).embedding) == 8
    assert len(ask(serving, 'fig', other__truncate_dim=8).embedding) == 32


@pytest.mark.parametrize('scheme', ['grpc', 'http'])
def test_a_client_embeds_a_list_of_any_length(serving, expected, scheme):
    port = serving.port if scheme == 'grpc' else serving.http_port
    with EncodeClient(f'{scheme}://127.0.0.1:{port}', batch_size=5, prefetch=3) as client:
        found = client.encode(TEXTS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
        twice = ['fig', '', 'fig']
        first, empty, second = client.encode(twice, truncate_dim=8, normalize=True)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(np.linalg.norm([first, empty], axis=1), 1, rtol=1e-5)
        assert client.encode([]).shape == (0, 0)
        with pytest.raises(DataError, match='text 1 is not a text but int'):
            client.encode(['a', 1])
        with pytest.raises(DataError, match='put it into a list'):
            client.encode('a')
        with pytest.raises(DataError, match='expected a list of texts, got NoneType'):
            client.encode(None)
        with pytest.raises(ArtifactNotFoundError, match="there is no model 'other'"):
            client.encode(['a'], model='other')
        with pytest.raises(ParameterError, match="'truncate_dim' is 999: the model has 32 dimensions"):
            client.encode(TEXTS, truncate_dim=999)


def test_a_client_that_has_the_other_port_is_told_at_once(serving):
    began = time.monotonic()
    for address in (f'grpc://127.0.0.1:{serving.http_port}', f'http://127.0.0.1:{serving.port}'):
        with EncodeClient(address) as client, pytest.raises(FinetunerServerError, match='answers, but'):
            client.encode(['a'])
    assert time.monotonic() - began < 10


def test_a_client_that_is_awaited(serving, expected):
    async def ask_all():
        with EncodeClient(f'grpc://127.0.0.1:{serving.port}', batch_size=4, dtype='float16') as client:
            return await asyncio.gather(*(client.aencode(TEXTS) for _ in range(3)))

    for found in asyncio.run(ask_all()):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-3)


def embeddings(service, body, **options):
    return requests.post(f'http://127.0.0.1:{service.http_port}/v1/embeddings', json=body, timeout=60, **options)


def test_embeddings_as_openai_has_them(serving, expected, tiny_model):
    answer = embeddings(serving, {'model': str(tiny_model), 'input': TEXTS, 'user': 'me'})
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert content['object'] == 'list' and content['model'] == str(tiny_model)
    assert [item['index'] for item in content['data']] == list(range(len(TEXTS)))
    np.testing.assert_allclose([item['embedding'] for item in content['data']], expected, atol=1e-5)
    tokens = sum(map(len, load_engine(tiny_model).preprocessor.features(TEXTS)))
    assert content['usage'] == {'prompt_tokens': tokens, 'total_tokens': tokens}
    one = embeddings(serving, {'input': TEXTS[0], 'encoding_format': 'base64', 'dimensions': 8}).json()['data'][0]
    row = np.frombuffer(base64.b64decode(one['embedding']), '<f4')
    np.testing.assert_allclose(row, expected[0, :8] / np.linalg.norm(expected[0, :8]), atol=1e-5)


@pytest.mark.parametrize(
    ('body', 'status', 'param', 'message'),
    [
        ({}, 400, 'input', "'input' is missing"),
        ({'input': []}, 400, 'input', "'input': send a text, or a list of texts that is not empty"),
        ({'input': [1, 2]}, 400, 'input', "'input': lists of tokens are not taken: send the texts"),
        ({'input': [[1, 2], [3]]}, 400, 'input', "'input': lists of tokens are not taken: send the texts"),
        ({'input': ['a', None]}, 400, 'input', "'input': text 1 is not a text"),
        ({'input': ['a'] * 2049}, 400, 'input', "'input': there are 2049 texts: send at most 2048 in one request"),
        ({'input': 'a', 'inputs': 'b'}, 400, 'inputs', "'inputs' is unknown"),
        ({'input': 'a', 'dimensions': 0}, 400, 'dimensions', "'dimensions': input should be greater than"),
        ({'input': 'a', 'dimensions': 999}, 400, 'dimensions', "'dimensions' is 999: the model has 32 dimensions"),
        ({'input': 'a', 'encoding_format': 'int8'}, 400, 'encoding_format', "'encoding_format': input should be"),
        ({'input': 'a', 'model': 'gpt'}, 404, None, "there is no model 'gpt': this is "),
    ],
)
def test_what_openai_would_refuse_is_refused_in_its_words(serving, body, status, param, message):
    answer = embeddings(serving, body)
    error = answer.json()['error']
    assert set(error) == {'message', 'type', 'param', 'code'}
    assert error['message'].startswith(message)
    assert answer.status_code == status
    assert error['type'] == 'invalid_request_error'
    assert param in (None, error['param'])


def test_errors_of_the_gateway_are_in_its_words_too(serving):
    url = f'http://127.0.0.1:{serving.http_port}'
    for answer, status in (
        (
            requests.post(f'{url}/v1/embeddings', data=b'{', headers={'Content-Type': 'application/json'}, timeout=60),
            400,
        ),
        (requests.post(f'{url}/v1/embeddings', data=b'x', headers={'Content-Type': 'text/plain'}, timeout=60), 415),
        (requests.get(f'{url}/v1/embeddings', timeout=60), 405),
        (requests.post(f'{url}/v1/chat/completions', json={}, timeout=60), 404),
    ):
        assert answer.status_code == status
        assert answer.json()['error']['message'], answer.text


def test_what_the_engine_does_is_measured(serving):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: ask(serving, text), TEXTS))
    text = requests.get(f'http://127.0.0.1:{serving.metrics_port}/metrics', timeout=60).text

    def value(name):
        return float(re.search(rf'^{re.escape("finetuner_encode_" + name)} (\S+)$', text, re.MULTILINE)[1])

    assert value('requests_total{outcome="answered"}') >= len(TEXTS)
    assert value('documents_total') >= len(TEXTS)
    assert value('tokens_total') > value('documents_total') and value('padding_tokens_total') >= 0
    assert value('queue_seconds_count') >= len(TEXTS) <= value('request_seconds_count')
    assert 0 < value('batch_fill_sum') <= value('batch_fill_count') == value('batch_items_count')
    assert value('documents_waiting') == value('documents_under_way') == 0
    assert re.search(r'finetuner_encode_model_info{artifact=".*model"} 1.0', text)


def test_documents_by_the_thousands_do_not_hold_others_up(serving):
    documents = [{'tags': {'number': number}} for number in range(20_000)]
    slowest, started = 0.0, time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(serving.post, '/encode', documents, token=None, on_error='tag')
        while not posted.done():
            began = time.monotonic()
            assert requests.get(f'http://127.0.0.1:{serving.http_port}/health/live', timeout=60).ok
            slowest = max(slowest, time.monotonic() - began)
    whole = time.monotonic() - started
    answers = posted.result().json()['data']
    assert [answer['tags']['number'] for answer in answers] == list(range(20_000))
    assert 'has no text to encode' in answers[-1]['tags']['finetuner_error']
    assert slowest < whole / 4
