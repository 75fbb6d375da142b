"""`flows/encode.yml` with a tiny model, over gRPC and HTTP: what comes back, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

from finetuner.documents import Document
from finetuner.inference import load_engine
from tests.integration.conftest import Service

TEXTS = [f'{fruit} {number}' for number in range(8) for fruit in ('fig', 'apple pie', 'a plum and a pear')]


@pytest.fixture(scope='module')
def serving(tmp_path_factory, tiny_model):
    service = Service('encode.yml', tmp_path_factory.mktemp('serving'), FINETUNER_ARTIFACT=tiny_model).start()
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
    assert {'token', 'return_content', 'on_error', 'truncate_dim', 'normalize', 'timeout'} <= set(told)
    assert len(ask(serving, 'x', truncate_dim=8).embedding) == 8
