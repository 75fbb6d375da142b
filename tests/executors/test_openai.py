"""Errors below /v1/: whoever makes them, they have the form that OpenAI's clients read."""

import asyncio
import json

import pytest

from executors.errors import refuse
from executors.limits import BodyLimits, RateLimits
from executors.openai import OpenAIErrors
from executors.rate import Buckets


async def answer_ok(scope, receive, send):
    while (await receive()).get('more_body'):
        pass
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'{}'})


def call(app, path='/v1/embeddings', body=b'{}', headers=()):
    """(status, headers, what the body says)"""
    parts = [{'type': 'http.request', 'body': body, 'more_body': False}]
    sent = []

    async def receive():
        return parts.pop(0) if parts else {'type': 'http.disconnect'}

    async def send(message):
        sent.append(message)

    scope = {'type': 'http', 'path': path, 'headers': list(headers), 'client': ('127.0.0.1', 1)}
    asyncio.run(app(scope, receive, send))
    start, *rest = sent
    content = b''.join(message['body'] for message in rest)
    length = dict(start['headers']).get(b'content-length')
    assert length is None or int(length) == len(content)
    return start['status'], dict(start['headers']), json.loads(content)


def test_too_many_requests():
    app = OpenAIErrors(RateLimits(answer_ok, Buckets(1)))
    assert [call(app)[0] for _ in range(2)] == [200, 200]
    status, headers, content = call(app)
    assert status == 429 and int(headers[b'retry-after']) >= 1
    assert content['error']['code'] == 'rate_limit_exceeded'
    assert content['error']['message'].startswith('more than 1 requests per second')
    assert set(call(app, '/encode')[2]) == {'detail'}, 'elsewhere it is as it was'


def test_a_body_that_is_too_large(monkeypatch):
    monkeypatch.setenv('FINETUNER_MAX_BODY_BYTES', '10')
    app = OpenAIErrors(BodyLimits(answer_ok))
    status, _, content = call(app, body=b'x' * 11, headers=[(b'content-length', b'11')])
    assert status == 413
    assert content['error']['message'] == 'the body is larger than 10 bytes: send it in parts'


@pytest.mark.parametrize(
    ('status', 'shown', 'kind', 'code'),
    [
        (422, 400, 'invalid_request_error', None),
        (401, 401, 'invalid_request_error', 'invalid_api_key'),
        (404, 404, 'invalid_request_error', 'model_not_found'),
        (503, 503, 'server_error', None),
    ],
)
def test_a_status_has_its_type_and_code(status, shown, kind, code):
    found, _, content = call(OpenAIErrors(refuse(status, "'input': it is wrong")))
    assert found == shown
    assert content == {'error': {'message': "'input': it is wrong", 'type': kind, 'param': 'input', 'code': code}}
