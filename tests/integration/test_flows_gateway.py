"""The one gRPC and one HTTP port in front of all executors: endpoints, tokens, errors, documents as JSON."""

import base64
import json
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import requests
from docarray.proto import DocListProto
from google.protobuf.empty_pb2 import Empty

from executors.health import is_serving
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import AuthenticationError, DataError, FinetunerServerError, RegistryError

RUN = {'run_name': 'no-such-run'}
GUARDED = {
    '/ingest': {'name': 'x'},
    '/fit': {'model': 'x', 'train_data': 'x'},
    '/status': RUN,
    '/runs': {},
    '/logs': RUN,
    '/cancel': RUN,
    '/resume': RUN,
    '/metrics': RUN,
    '/examples': RUN,
    '/artifact': {'artifact_id': 'a' * 24},
    '/whoami': {},
    '/create_experiment': {'name': 'x'},
    '/experiment': {'name': 'no-such-experiment'},
    '/experiments': {},
    '/delete_run': RUN,
    '/delete_runs': {},
    '/delete_experiments': {},
    '/datasets': {},
    '/dataset': {'name': 'no-such-data'},
    '/delete_dataset': {'name': 'no-such-data'},
    '/usage': {},
    '/create_token': {'name': 'x'},
    '/tokens': {},
    '/revoke_token': {'id': 'a' * 24},
    '/artifacts': {},
    '/promote': {'alias': 'a@b', 'artifact': 'a' * 24},
    '/rollback': {'alias': 'a@b'},
    '/aliases': {},
    '/alias': {'alias': 'a@b'},
    '/delete_alias': {'alias': 'a@b'},
    '/register_session': {'session_id': 'x', 'search_query': 'x', 'search_results': []},
    '/register_events': {'session_id': 'x', 'events': []},
    '/mark_irrelevant': {'session_id': 'x'},
    '/click_session': {'session_id': 'x'},
    '/release_batch': {'release_id': 'x'},
    '/batch_sessions': {'batch_id': 'x'},
    '/batches': {},
    '/batch': {'batch_id': 'x'},
    '/delete_sessions': {'user_id': 'x'},
    '/create_tuning_task': {'fine_tuning_method': 'x'},
    '/tuning_task': {'task_id': 'x'},
    '/tuning_tasks': {},
    '/cancel_tuning_task': {'task_id': 'x'},
    '/restart_tuning_task': {'task_id': 'x'},
}
ALL = ', '.join(sorted([*GUARDED, '/encode', '/encode_texts', '/logstream']))


@pytest.mark.parametrize(('endpoint', 'parameters'), GUARDED.items())
def test_a_token_is_needed_and_checked(service, endpoint, parameters):
    for token, sentence in ((None, 'A token is needed'), ('wrong', 'not known')):
        response = service.post(endpoint, [{'text': 'x'}], token=token, **parameters)
        assert response.status_code == 401
        assert sentence in response.json()['detail']
        with pytest.raises(AuthenticationError, match=sentence):
            service.call(endpoint, [Document(text='x')], token=token, **parameters)


def test_a_stream_needs_a_token_too(service):
    url = f'http://127.0.0.1:{service.http_port}/logstream'
    for token, sentence in ((None, 'A token is needed'), ('wrong', 'not known')):
        tags = {**RUN, **({} if token is None else {'token': token})}
        headers = {} if token is None else {'Authorization': f'Bearer {token}'}
        response = requests.get(url, params=RUN, headers=headers, timeout=60)
        assert response.status_code == 401
        assert sentence in response.json()['detail']
        with pytest.raises(AuthenticationError, match=sentence):
            list(service.channel.stream('/logstream', tags))


def test_the_token_may_come_in_the_header_as_it_does_elsewhere(service):
    url = f'http://127.0.0.1:{service.http_port}/whoami'
    for kind in ('Bearer', 'token'):
        response = requests.post(url, json={}, headers={'Authorization': f'{kind} {service.token}'}, timeout=60)
        assert response.json()['data'][0]['tags'] == {'account': 'local'}
    assert requests.post(url, json={}, headers={'Authorization': 'Bearer wrong'}, timeout=60).status_code == 401


@pytest.mark.parametrize(('method', 'endpoint'), [('GET', '/logstream'), ('POST', '/logstream'), ('POST', '/whoami')])
def test_a_token_in_a_url_is_refused(service, method, endpoint):
    url = f'http://127.0.0.1:{service.http_port}{endpoint}?run_name=x&token={service.token}'
    response = requests.request(method, url, json={}, timeout=60)
    assert response.status_code == 400
    assert 'Authorization: Bearer' in response.json()['detail']


def test_no_token_reaches_the_log_at_its_most_verbose(start_service):
    service = start_service('train.yml', JINA_LOG_LEVEL='DEBUG')
    url, token = f'http://127.0.0.1:{service.http_port}', service.token
    for parameters in (RUN, {**RUN, 'token': token}):
        for headers in ({}, {'Authorization': f'Bearer {token}'}):
            requests.get(f'{url}/logstream', params=parameters, headers=headers, timeout=60)
            requests.post(f'{url}/logstream', json={'tags': parameters}, headers=headers, timeout=60)
            requests.post(f'{url}/status', json={'parameters': parameters}, headers=headers, timeout=60)
            requests.get(f'{url}/api/v1/experiments/default/runs/x/logs', headers=headers, timeout=60)
            requests.put(f'{url}/api/v1/datasets/d/parts/0?format=csv', data=b'x', headers=headers, timeout=60)
            message = {**headers, 'Content-Type': 'application/x-protobuf'}
            requests.post(f'{url}/status', data=token.encode(), headers=message, timeout=60)
    with pytest.raises(RegistryError, match='no experiment'):
        list(service.channel.stream('/logstream', {**RUN, 'token': token}))
    service.stop()
    log = service.log.read_text()
    assert 'DEBUG' in log
    assert token not in log


def test_no_token_ever_reaches_a_log_or_an_error(service):
    """Tokens of the wrong type, in the wrong place, under the wrong name."""
    secret = 'SECRET-' + 'x' * 30
    for body in (
        {'parameters': {'token': secret}},
        {'parameters': {'token': [secret]}},
        {'parameters': {'tokn': secret}},
        {'parameters': {'token': secret, 'run_name': 3, 'offset': 'x'}},
        {'parameters': [secret]},
        {'parameters': {'token': {'token': secret}}},
    ):
        for endpoint in ('/status', '/whoami', '/ingest', '/logs', '/fit', '/encode'):
            response = requests.post(f'http://127.0.0.1:{service.http_port}{endpoint}', json=body, timeout=60)
            assert secret not in response.text, (endpoint, body)
    with pytest.raises(AuthenticationError) as caught:
        service.call('/whoami', token=secret)
    assert secret not in str(caught.value)
    log = service.log.read_text()
    assert secret not in log
    assert service.token not in log


@pytest.mark.parametrize('endpoint', ['/nope', '/', '', 'encode', '/encode/', '/default'])
def test_an_unknown_endpoint_is_an_error_that_lists_the_endpoints(service, endpoint):
    with pytest.raises(FinetunerServerError, match=f'unknown endpoint .*: this service has {ALL}$'):
        service.call(endpoint)
    with pytest.raises(FinetunerServerError, match=f'unknown endpoint .*: this service has {ALL}$'):
        list(service.channel.stream(endpoint, {}))
    if endpoint in ('/nope', '/default'):
        url = f'http://127.0.0.1:{service.http_port}{endpoint}'
        for response in (requests.post(url, json={}, timeout=60), requests.get(url, timeout=60)):
            assert response.status_code == 404
            assert response.json()['detail'].endswith(f': this service has {ALL}')


def test_an_endpoint_is_called_as_what_it_is(service):
    with pytest.raises(FinetunerServerError, match='/encode does not stream'):
        list(service.channel.stream('/encode', {}))
    with pytest.raises(FinetunerServerError, match='/logstream streams'):
        service.call('/logstream')
    response = requests.get(f'http://127.0.0.1:{service.http_port}/encode', timeout=60)
    assert response.status_code == 405
    assert 'use POST' in response.json()['detail']


def test_jinas_own_client_gets_the_error_too(service):
    from jina import Client
    from jina.excepts import BadServer

    client = Client(port=service.port)
    with pytest.raises(BadServer, match='this service has'):
        client.post('/nope', DocumentArray([Document(text='x')]))
    (document,) = client.post('/encode', DocumentArray([Document(text='x')]))
    assert document.embedding.shape == (32,)
    assert client.is_flow_ready()
    assert Client(port=service.http_port, protocol='http').is_flow_ready()


def test_the_gateway_tells_its_endpoints_as_an_executor_does(service):
    from jina.proto import jina_pb2_grpc

    with grpc.insecure_channel(f'127.0.0.1:{service.port}') as channel:
        answer = jina_pb2_grpc.JinaDiscoverEndpointsRPCStub(channel).endpoint_discovery(Empty(), timeout=30)
    assert ', '.join(answer.endpoints) == ALL


def test_many_requests_of_one_jina_client_are_answered_each(service):
    from jina import Client

    documents = DocumentArray([Document(id=str(i), text=f'text {i}') for i in range(50)])
    answers = Client(port=service.port).post('/encode', documents, request_size=5, results_in_order=True)
    assert [answer.id for answer in answers] == [str(i) for i in range(50)]


def test_json_carries_every_field_of_a_document(service):
    document = {
        'id': 'outer',
        'text': 'Straße 東京 🙂',
        'uri': 'https://example.com/a.png',
        'blob': base64.b64encode(bytes(range(256))).decode(),
        'tensor': [[1.5, 2.0], [3.0, -4.0]],
        'modality': 'text',
        'tags': {'finetuner_label': 'x', 'nested': {'list': [1, 2.5, None, True, 'ü'], 'empty': {}}},
        'chunks': [
            {'id': 'first', 'text': 'a chunk', 'embedding': [1.0, 2.0], 'tags': {'n': 1}},
            {'id': 'second', 'blob': base64.b64encode(b'\xff\x00').decode()},
        ],
    }
    (answer,) = service.post('/encode', [document], token=None, return_content=True).json()['data']
    assert len(answer.pop('embedding')) == 32
    empty = dict.fromkeys(('text', 'uri', 'blob', 'tensor', 'modality', 'embedding')) | {'tags': {}}
    document['chunks'] = [empty | chunk for chunk in document['chunks']]
    assert answer == document


def test_one_document_may_come_without_a_list(service):
    (answer,) = service.post('/encode', {'id': 'alone', 'text': 'x'}, token=None).json()['data']
    assert answer['id'] == 'alone'


@pytest.mark.parametrize(
    ('document', 'field', 'reason'),
    [
        ({'text': 7}, 'text', 'got 7'),
        ({'text': 'x', 'tags': 'y'}, 'tags', 'valid dictionary'),
        ({'text': 'x', 'blob': '***'}, 'blob', 'base64'),
        ({'text': 'x', 'chunks': [{'text': []}]}, 'chunks', 'valid string'),
        ({'text': 'x', 'embedding': 'y'}, 'embedding', ''),
        ({'text': 'x', 'tags': {'a': json.loads('[' * 40 + ']' * 40)}}, 'tags', 'nests deeper than 20 levels'),
    ],
)
def test_a_malformed_document_in_json_is_named(service, document, field, reason):
    data = [{'text': 'fine'}, {'id': 'the-bad-one', **document}]
    response = service.post('/encode', data, token=None)
    assert response.status_code == 422
    detail = response.json()['detail']
    assert detail.startswith("document 1 (id 'the-bad-one')")
    assert field in detail
    assert reason in detail
    assert service.post('/encode', data[:1], token=None).status_code == 200


def test_a_malformed_document_in_a_message_is_named_and_the_service_goes_on(service):
    message = DocumentArray([Document(text='fine'), Document(id='the-bad-one', text='x')]).to_protobuf()
    message.docs[1].data['text'].integer = 7
    with pytest.raises(DataError, match=r"document 1 \(id 'the-bad-one'\), field 'text'"):
        service.channel.call('/encode', {}, message.SerializeToString())
    assert service.call('/encode', [Document(text='fine')]).embeddings.shape == (1, 32)


@pytest.mark.parametrize(
    ('body', 'status'),
    [
        (b'{', 400),
        (b'\xff', 400),
        (b'[' * 100_000, 400),
        (b'[]', 422),
        (b'{"data": 3}', 422),
        (b'{"data": [3]}', 422),
        (b'{"parameters": []}', 422),
        (b'{"data": [{"text": "x", "tags": {"n": 12345678901}}]}', 422),
    ],
)
def test_a_body_that_is_no_request_is_refused(service, body, status):
    url = f'http://127.0.0.1:{service.http_port}/encode'
    response = requests.post(url, data=body, timeout=60)
    assert response.status_code == status
    assert response.json()['detail']


def test_a_broken_message_does_not_break_the_service(service):
    with pytest.raises(DataError, match='the documents of the message cannot be read'):
        service.channel.call('/encode', {}, b'\xff\xff\xff')
    assert service.call('/encode', [Document(text='fine')]).embeddings.shape == (1, 32)


def test_executors_listen_where_no_outgoing_connection_can_be(service):
    """One of those took the port of an executor between its choice and its use, and the Flow did not start."""
    highest = int(Path('/proc/sys/net/ipv4/ip_local_port_range').read_text().split()[1])
    for name in ('encoder', 'trainer', 'dataset'):
        connections = service.process_of(name).net_connections('tcp')
        assert all(one.laddr.port > highest for one in connections if one.status == psutil.CONN_LISTEN)


def test_the_interface_describes_itself(service):
    schema = requests.get(f'http://127.0.0.1:{service.http_port}/openapi.json', timeout=60).json()
    beside = {'/', '/dry_run', '/health/live', '/health/ready', '/v1/embeddings'}
    assert {path for path in schema['paths'] if not path.startswith('/api/v1/')} == {*ALL.split(', '), *beside}
    assert requests.get(f'http://127.0.0.1:{service.http_port}/docs', timeout=60).status_code == 200
    assert requests.get(f'http://127.0.0.1:{service.http_port}/', timeout=60).status_code == 200


def test_many_documents_in_one_http_request_are_all_answered(service):
    """Jina's own gateway answers with the first hundred."""
    response = service.post('/encode', [{'id': str(i), 'text': f'text {i}'} for i in range(250)], token=None)
    assert [document['id'] for document in response.json()['data']] == [str(i) for i in range(250)]


def test_the_service_answers_while_a_large_request_is_at_work(service):
    """Encoder and gateway are asked over and over while documents are embedded: neither computes on its event loop."""
    connections = service.process_of('encoder').net_connections('tcp')
    (port,) = {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
    documents = [Document(text='a long text ' * 50) for _ in range(2000)]
    worker = threading.Thread(target=service.call, args=('/encode', documents))
    begun = time.monotonic()
    worker.start()
    seconds = []
    while worker.is_alive():
        start = time.monotonic()
        assert is_serving(port)
        requests.get(f'http://127.0.0.1:{service.http_port}/', timeout=60)
        seconds.append(time.monotonic() - start)
    assert len(seconds) > 20, 'answers while the request was at work'
    assert max(seconds) < (time.monotonic() - begun) / 2


@pytest.mark.slow
def test_the_service_answers_after_a_pause(service):
    """Jina's connections die of too many pings after a minute without a request."""
    time.sleep(70)
    for endpoint, status in (('/whoami', 200), ('/ingest', 422), ('/encode', 200)):
        assert service.post(endpoint).status_code == status
    assert service.call('/encode', [Document(text='fine')]).embeddings.shape == (1, 32)


def test_embeddings_are_the_same_over_both_protocols(service):
    texts = ['one', 'two', 'three']
    over_grpc = service.call('/encode', [Document(text=text) for text in texts]).embeddings
    response = service.post('/encode', [{'text': text} for text in texts], token=None)
    assert np.allclose([document['embedding'] for document in response.json()['data']], over_grpc, atol=1e-6)


def test_a_message_without_documents_is_a_list_of_none(service):
    assert not DocListProto.FromString(service.channel.call('/encode', {})).docs


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        ({'documents': [{'text': 'a'}]}, "'documents' is unknown: a body is"),
        ({'text': 'a'}, "'text' is unknown: a body is"),
        ({'data': [{'text': 'a'}, {'text': 'b', 'finetuner_label': 'x'}]}, "document 1: 'finetuner_label' is unknown"),
    ],
)
def test_what_nobody_would_look_at_is_refused(service, body, message):
    response = requests.post(f'http://127.0.0.1:{service.http_port}/encode', json=body, timeout=60)
    assert response.status_code == 422
    assert message in response.json()['detail']


@pytest.mark.slow
def test_a_body_that_is_too_large_is_refused_unread(start_service, tiny_model):
    service = start_service('encode.yml', FINETUNER_ARTIFACT=tiny_model, FINETUNER_MAX_BODY_BYTES=1000)
    url = f'http://127.0.0.1:{service.http_port}/encode'
    assert requests.post(url, json={'data': [{'text': 'a'}]}, timeout=60).status_code == 200
    large = json.dumps({'data': [{'text': 1000 * 'a'}]}).encode()
    for sent in (large, iter([large[:500], large[500:]])):  # the latter does not say how much it is
        response = requests.post(url, data=sent, timeout=60)
        assert response.status_code == 413
        assert response.json()['detail'] == 'the body is larger than 1000 bytes: send it in parts'


@pytest.mark.slow
def test_a_service_ends_after_a_stream_with_a_message_that_cannot_be_read(start_service, tiny_model):
    service = start_service('serve.yml', FINETUNER_ARTIFACT=tiny_model)
    with grpc.insecure_channel(f'127.0.0.1:{service.port}') as channel:
        call = channel.stream_stream('/jina.JinaRPC/Call', request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.RpcError, match='the message cannot be read'):
            list(call(iter([b'\xff\xff\xff\xff']), timeout=60))
    began = time.monotonic()
    service.stop()
    assert time.monotonic() - began < 15
    assert 'Traceback' not in service.log.read_text()
