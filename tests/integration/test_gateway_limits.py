"""The gateway by itself: TLS, CORS, rates, slow and large bodies; and routes of /api/v1 that hang on few endpoints."""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import requests
from jina import Executor, Flow
from jina import requests as endpoint

import executors.gateway
from executors import limits, rate
from executors.parameters import Parameters
from finetuner.client.channel import Channel
from finetuner.client.transport import make_request
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import AuthenticationError, FinetunerServerError, NotFoundError, RegistryError
from tests.flows import run_flow
from tests.integration.conftest import ROOT, clean_environment, free_ports, wait_until

DAY = '2026-11-28T17:00:00+00:00'
FINETUNER = Path(sys.executable).with_name('finetuner')
ARTIFACT = 'a' * 24


class NameParameters(Parameters):
    name: str


class TokenParameters(Parameters):
    name: str
    days: float | None = None


class IdParameters(Parameters):
    id: str


class PageParameters(Parameters):
    page: int = 1
    size: int = 50


class DatasetParameters(PageParameters):
    name: str


class AliasParameters(Parameters):
    alias: str


class HistoryParameters(AliasParameters, PageParameters):
    pass


class PromoteParameters(AliasParameters):
    artifact: str


def answer(**tags: Any) -> DocumentArray:
    return DocumentArray([Document(tags=tags)])


def check(parameters: Parameters) -> None:
    if not (parameters.secret or '').startswith('good'):
        raise AuthenticationError('The token is not known to this service.')


DATASET = {
    'name': 'd',
    'rows': 3,
    'size': 5e9,  # beyond 32 bits an integer travels as a float
    'digest': 'x',
    'shape': 'items',
    'modalities': ['text'],
    'labelled': True,
    'scored': False,
    'created_at': DAY,
}
ALIAS = {'alias': 'a@production', 'artifact_id': ARTIFACT, 'number': 2, 'created_at': DAY}


class StandIn(Executor):
    """Endpoints with answers in the form of the real ones, where the gateway alone is tested."""

    @endpoint(on='/encode')
    def encode(self, docs: DocumentArray, **kwargs) -> DocumentArray:
        return docs

    @endpoint(on='/drip')
    async def drip(self, doc: Document, **kwargs) -> Document:
        yield doc
        await asyncio.sleep(60)

    @endpoint(on='/linger')
    async def linger(self, docs: DocumentArray, **kwargs) -> DocumentArray:
        await asyncio.sleep(2)
        return answer(done=True)

    @endpoint(on='/whoami')
    def whoami(self, docs: DocumentArray, parameters: Parameters, **kwargs) -> DocumentArray:
        check(parameters)
        return answer(account='local')

    @endpoint(on='/create_token')
    def create_token(self, docs: DocumentArray, parameters: TokenParameters, **kwargs) -> DocumentArray:
        check(parameters)
        return answer(id=ARTIFACT, name=parameters.name, token='new', created_at=DAY, expires_at=None)

    @endpoint(on='/tokens')
    def tokens(self, docs: DocumentArray, parameters: PageParameters, **kwargs) -> DocumentArray:
        check(parameters)
        token = {'id': ARTIFACT, 'name': 'laptop', 'created_at': DAY, 'expires_at': None, 'revoked_at': None}
        return answer(items=[token], total=1, page=parameters.page, size=parameters.size)

    @endpoint(on='/revoke_token')
    def revoke_token(self, docs: DocumentArray, parameters: IdParameters, **kwargs) -> DocumentArray:
        check(parameters)
        if parameters.id != ARTIFACT:
            raise NotFoundError(f'There is no token of the id {parameters.id!r}')
        return answer(id=ARTIFACT, name='laptop', created_at=DAY, expires_at=None, revoked_at=DAY)

    @endpoint(on='/usage')
    def usage(self, docs: DocumentArray, parameters: Parameters, **kwargs) -> DocumentArray:
        check(parameters)
        stored = {'count': 1, 'bytes': 5e9}
        runs = {'waiting': 0, 'at_work': 1, 'total': 2}
        return answer(
            account='local',
            datasets=stored,
            artifacts=stored,
            checkpoints=stored,
            search_items=stored,
            runs=runs,
            max_bytes=None,
            max_runs=4,
            max_search_bytes=1e9,
        )

    @endpoint(on='/datasets')
    def datasets(self, docs: DocumentArray, parameters: PageParameters, **kwargs) -> DocumentArray:
        check(parameters)
        return answer(items=[DATASET], total=1, page=parameters.page, size=parameters.size)

    @endpoint(on='/dataset')
    def dataset(self, docs: DocumentArray, parameters: DatasetParameters, **kwargs) -> DocumentArray:
        check(parameters)
        if parameters.name != 'd':
            raise NotFoundError(f'There is no data set {parameters.name!r}: there are: d')
        part = {'part': 0, 'rows': 3, 'size': 10, 'sha256': 's', 'content_digest': 'c'}
        return answer(**DATASET, parts=[part], parts_total=1)

    @endpoint(on='/delete_dataset')
    def delete_dataset(self, docs: DocumentArray, parameters: NameParameters, **kwargs) -> DocumentArray:
        check(parameters)
        return answer(**DATASET)

    @endpoint(on='/artifacts')
    def artifacts(self, docs: DocumentArray, parameters: PageParameters, **kwargs) -> DocumentArray:
        check(parameters)
        names = {'id': ARTIFACT, 'name': 'r', 'experiment_name': 'e', 'run_name': 'r', 'aliases': ['a@production']}
        item = {**names, 'size': 10, 'sha256': 's', 'public': False, 'created_at': DAY}
        return answer(items=[item], total=1, page=1, size=50)

    @endpoint(on='/aliases')
    def aliases(self, docs: DocumentArray, parameters: PageParameters, **kwargs) -> DocumentArray:
        check(parameters)
        return answer(items=[{**ALIAS, 'experiment_name': 'e', 'run_name': 'r'}], total=1, page=1, size=50)

    @endpoint(on='/delete_alias')
    def delete_alias(self, docs: DocumentArray, parameters: AliasParameters, **kwargs) -> DocumentArray:
        check(parameters)
        return answer(**{**ALIAS, 'alias': parameters.alias})

    @endpoint(on='/alias')
    def alias(self, docs: DocumentArray, parameters: HistoryParameters, **kwargs) -> DocumentArray:
        check(parameters)
        history = [{'number': 2, 'artifact_id': ARTIFACT, 'created_at': DAY}]
        return answer(**{**ALIAS, 'alias': parameters.alias}, history=history, history_total=1)

    @endpoint(on='/promote')
    def promote(self, docs: DocumentArray, parameters: PromoteParameters, **kwargs) -> DocumentArray:
        check(parameters)
        return answer(**{**ALIAS, 'alias': parameters.alias, 'previous': None})

    @endpoint(on='/rollback')
    def rollback(self, docs: DocumentArray, parameters: AliasParameters, **kwargs) -> DocumentArray:
        check(parameters)
        if parameters.alias != 'a@production':
            raise RegistryError('There is nothing before')
        return answer(**{**ALIAS, 'previous': 'b' * 24})


@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    """A certificate for localhost by a CA of our own: (the CA's, its own, its key)."""
    folder = tmp_path_factory.mktemp('tls')

    def openssl(*arguments: str) -> None:
        subprocess.run(['openssl', *arguments], check=True, capture_output=True, cwd=folder)

    new = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
    openssl('req', '-x509', *new, '-keyout', 'ca.key', '-out', 'ca.pem', '-subj', '/CN=our own CA')
    openssl('req', *new, '-keyout', 'own.key', '-out', 'own.csr', '-subj', '/CN=localhost')
    (folder / 'names').write_text('subjectAltName=DNS:localhost,IP:127.0.0.1')
    signing = ['-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-extfile', 'names']
    openssl('x509', '-req', '-in', 'own.csr', *signing, '-out', 'own.pem')
    return folder / 'ca.pem', folder / 'own.pem', folder / 'own.key'


def build(ports: list[int]) -> Flow:
    rate.MAX_STREAMS = executors.gateway.MAX_STREAMS = 2
    limits.HEADER_PATIENCE = 3.0
    flow = Flow().config_gateway(uses='executors.gateway.FinetunerGateway', protocol=['grpc', 'http'], port=ports)
    return flow.add(uses=StandIn)


@pytest.fixture(scope='module')
def gateway(certificate):
    """A gateway with TLS, few requests per second, small bodies, and pages of one origin; (gRPC port, HTTP base)."""
    variables = {
        'FINETUNER_TLS_CERT': str(certificate[1]),
        'FINETUNER_TLS_KEY': str(certificate[2]),
        'FINETUNER_RATE_LIMIT': '5',
        'FINETUNER_MAX_BODY_BYTES': '100000',
        'FINETUNER_CORS_ORIGINS': 'https://good.example, https://other.example',
    }
    ports = free_ports(2)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with run_flow(build, ports):
            yield ports[0], f'https://localhost:{ports[1]}'


@pytest.fixture
def send(gateway, certificate, request):
    """A call over HTTPS, with a token that no other test uses up."""
    own = f'good-{request.node.name}'

    def send(method: str, path: str, token: str | None = own, **options: Any) -> requests.Response:
        headers = {'Authorization': f'Bearer {token}'} if token else {}
        headers |= options.pop('headers', {})
        return requests.request(
            method, f'{gateway[1]}{path}', headers=headers, verify=str(certificate[0]), timeout=60, **options
        )

    return send


# TLS


def test_both_ports_speak_tls_alone(gateway, send, certificate, monkeypatch):
    assert send('GET', '/health/ready').json() == {'status': 'ready'}
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f'{gateway[1]}/health/live', timeout=60)
    with pytest.raises(requests.ConnectionError):
        requests.get(f'{gateway[1].replace("https", "http")}/health/live', timeout=60)
    monkeypatch.setenv('FINETUNER_CA_CERT', str(certificate[0]))
    channel = Channel(f'grpcs://localhost:{gateway[0]}')
    assert channel.is_ready()
    channel.call('/whoami', {'token': 'good-over-grpc'})
    channel.close()
    for host in (f'grpc://localhost:{gateway[0]}', f'grpcs://localhost:{gateway[0]}'):
        monkeypatch.delenv('FINETUNER_CA_CERT', raising=False)
        channel = Channel(host)
        assert not channel.is_ready(), 'without TLS, or without trust'
        channel.close()
    monkeypatch.setenv('FINETUNER_CA_CERT', '/nowhere/ca.pem')
    with pytest.raises(ValueError, match='FINETUNER_CA_CERT names no file: /nowhere/ca.pem'):
        Channel(f'grpcs://localhost:{gateway[0]}')


def test_half_of_tls_is_told_before_anything_starts(tmp_path, certificate):
    environment = clean_environment(FINETUNER_HOME=tmp_path, FINETUNER_TLS_CERT=certificate[1])
    command = [Path(sys.executable).with_name('jina'), 'flow', '--uses', ROOT / 'flows' / 'encode.yml']
    done = subprocess.run(
        command,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert 'finetuner: FINETUNER_TLS_CERT is set and FINETUNER_TLS_KEY is not' in done.stderr
    assert 'Traceback' not in done.stderr + done.stdout


# rates


def test_who_calls_too_often_has_to_wait_and_nobody_else(gateway, send):
    for _ in range(500):
        refused = send('GET', '/api/v1/me', token='greedy')
        if refused.status_code != 401:  # the token is unknown
            break
    assert refused.status_code == 429
    assert refused.headers['retry-after'] == '1'
    assert refused.json()['detail'] == 'more than 5 requests per second: try again in 1 s'
    assert send('GET', '/api/v1/me').status_code == 200
    assert send('GET', '/health/live', token='greedy').status_code == 200, 'probes are never refused'


def test_grpc_counts_with_http(gateway, send, certificate, monkeypatch):
    monkeypatch.setenv('FINETUNER_CA_CERT', str(certificate[0]))
    channel = Channel(f'grpcs://localhost:{gateway[0]}')
    while send('GET', '/api/v1/me', token='hasty').status_code != 429:
        with pytest.raises(AuthenticationError):
            channel.call('/whoami', {'token': 'hasty'})
    request = make_request('/whoami', {'token': 'hasty'}, b'')
    with pytest.raises(grpc.RpcError) as caught:
        for _ in range(500):
            channel._connection.call(request, timeout=60)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details().startswith('more than 5 requests per second')
    channel.close()


def test_a_client_over_grpc_waits_for_as_long_as_it_is_asked_to(gateway, certificate, monkeypatch):
    monkeypatch.setenv('FINETUNER_CA_CERT', str(certificate[0]))
    channel = Channel(f'grpcs://localhost:{gateway[0]}')
    start = time.monotonic()
    for number in range(14):  # ten at once, then five per second
        channel.call('/create_token', {'token': 'good-patience', 'name': f'token {number}'})
    assert 0.9 < time.monotonic() - start < 30
    channel.close()


# bodies


def test_bodies_are_small_over_both_protocols(gateway, send, certificate):
    for path, options in (
        ('/api/v1/tokens', {'json': {'name': 'x' * 200_000}}),
        ('/encode', {'data': iter([b'{"data": [{"text": "', 150_000 * b'x', b'"}]}'])}),
        ('/whoami', {'data': 150_000 * b'x', 'headers': {'Content-Type': 'application/x-protobuf'}}),
    ):
        response = send('POST', path, **options)
        assert response.status_code == 413
        assert response.json()['detail'] == 'the body is larger than 100000 bytes: send it in parts'
    large = send('POST', '/whoami', data=bytes(40 << 20), headers={'Content-Type': 'application/x-protobuf'})
    assert large.status_code == 413, 'the answer is read although much of the body was still on its way'
    credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    with grpc.secure_channel(f'localhost:{gateway[0]}', credentials) as channel:
        call = channel.unary_unary('/jina.JinaSingleDataRequestRPC/process_single_data')
        with pytest.raises(grpc.RpcError) as caught:
            call(150_000 * b'x', timeout=30)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_few_large_requests_are_held_at_once_over_grpc(gateway, certificate):
    credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    with grpc.secure_channel(f'localhost:{gateway[0]}', credentials) as channel:
        call = channel.unary_unary('/jina.JinaSingleDataRequestRPC/process_single_data')
        docs = DocumentArray([Document(text=90_000 * 'x')]).to_protobuf().SerializeToString()
        sent = [
            call.future(make_request('/linger', {'token': f'at-once-{number}'}, docs).SerializeToString(), timeout=60)
            for number in range(12)
        ]
        codes = [one.code() for one in sent]
        assert codes.count(grpc.StatusCode.OK) == 8
        refused = next(one for one in sent if one.code() == grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert refused.details() == 'too many large requests at once: try again in a second'
        assert ('retry-after', '1') in [tuple(entry) for entry in refused.trailing_metadata()]
        again = make_request('/linger', {'token': 'at-once'}, docs).SerializeToString()
        assert call(again, timeout=60), 'what was answered is let go'


def test_streams_of_a_caller_are_counted_over_both_protocols_and_let_go(gateway, send, certificate, monkeypatch):
    monkeypatch.setenv('FINETUNER_CA_CERT', str(certificate[0]))
    channel = Channel(f'grpcs://localhost:{gateway[0]}')
    over_grpc = channel.stream('/drip', {'token': 'good-streams'})
    next(over_grpc)
    with send('GET', '/drip', token='good-streams', stream=True) as over_http:
        assert over_http.status_code == 200
        refused = send('GET', '/drip', token='good-streams')
        assert (refused.status_code, refused.json()['detail']) == (429, 'more than 2 streams at once: end one of them')
        with pytest.raises(FinetunerServerError, match='more than 2 streams at once'):
            next(channel.stream('/drip', {'token': 'good-streams'}))
    over_grpc.close()
    time.sleep(1)
    again = channel.stream('/drip', {'token': 'good-streams'})
    next(again)
    again.close()
    channel.close()


def connect(gateway, certificate) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    plain = socket.create_connection(('localhost', int(gateway[1].rpartition(':')[2])), timeout=60)
    return context.wrap_socket(plain, server_hostname='localhost')


def test_headers_are_not_awaited_for_ever(gateway, certificate):
    with connect(gateway, certificate) as connection:
        connection.sendall(b'GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Slow: ')
        start = time.monotonic()
        assert connection.recv(1000) == b'', 'the connection is closed'
        assert 1 < time.monotonic() - start < 40


def test_headers_of_any_size_are_not_read(gateway, certificate):
    with connect(gateway, certificate) as connection:
        try:
            connection.sendall(b'GET / HTTP/1.1\r\nHost: localhost\r\nX-Large: ' + 200_000 * b'x')
            assert connection.recv(1000).startswith(b'HTTP/1.1 4')
        except (ConnectionError, ssl.SSLError):
            pass  # closed while we wrote: as good


@pytest.mark.parametrize(
    'raw',
    [
        b'NONSENSE\r\n\r\n',
        b'POST /encode HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n',
        b'POST /encode HTTP/1.1\r\nHost: a\r\nContent-Length: five\r\n\r\n{}',
        b'POST /encode HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}',
        b'POST /encode HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n',
    ],
)
def test_what_is_no_http_is_a_bad_request(gateway, certificate, raw):
    with connect(gateway, certificate) as connection:
        connection.sendall(raw)
        assert connection.recv(1000).startswith(b'HTTP/1.1 400')


# pages of other origins


def test_pages_of_the_origins_that_were_named_may_call(send):
    good = send('GET', '/api/v1/me', headers={'Origin': 'https://good.example'})
    assert good.headers['access-control-allow-origin'] == 'https://good.example'
    asked = {'Origin': 'https://other.example', 'Access-Control-Request-Method': 'DELETE'}
    asked['Access-Control-Request-Headers'] = 'authorization'
    allowed = send('OPTIONS', '/api/v1/experiments', headers=asked)
    assert allowed.status_code == 200 and 'DELETE' in allowed.headers['access-control-allow-methods']
    evil = send('GET', '/api/v1/me', headers={'Origin': 'https://evil.example'})
    assert 'access-control-allow-origin' not in evil.headers


# /api/v1 over endpoints that stand in for the real ones: the forms, and what the routes do with them


def test_tokens(send):
    made = send('POST', '/api/v1/tokens', json={'name': 'laptop', 'days': 3}).json()
    assert made == {'id': ARTIFACT, 'name': 'laptop', 'token': 'new', 'created_at': DAY, 'expires_at': None}
    listed = send('GET', '/api/v1/tokens/').json()
    assert listed['total'] == 1 and 'token' not in listed['items'][0]
    assert send('DELETE', f'/api/v1/tokens/{ARTIFACT}').json()['revoked_at'] == DAY
    missing = send('DELETE', f'/api/v1/tokens/{"b" * 24}')
    assert (missing.status_code, missing.json()['detail'][:22]) == (404, 'There is no token of t')
    for days in (0, -1, 1e9, 'x'):
        assert send('POST', '/api/v1/tokens', json={'name': 'laptop', 'days': days}).status_code == 422


def test_usage(send):
    usage = send('GET', '/api/v1/usage').json()
    assert usage['datasets'] == {'count': 1, 'bytes': 5_000_000_000}
    assert (usage['max_bytes'], usage['max_runs'], usage['runs']['at_work']) == (None, 4, 1)
    assert (usage['search_items'], usage['max_search_bytes']) == (usage['datasets'], 1_000_000_000)


def test_datasets(send):
    page = send('GET', '/api/v1/datasets?page=2&size=7').json()
    assert (page['page'], page['size'], page['items'][0]['size']) == (2, 7, 5_000_000_000)
    found = send('GET', '/api/v1/datasets/d').json()
    assert found['parts'] == [{'part': 0, 'rows': 3, 'size': 10, 'sha256': 's', 'content_digest': 'c'}]
    assert send('GET', '/api/v1/datasets/other').status_code == 404
    assert send('DELETE', '/api/v1/datasets/d').json()['name'] == 'd'


def test_artifacts(send):
    (artifact,) = send('GET', '/api/v1/artifacts').json()['items']
    assert (artifact['id'], artifact['aliases']) == (ARTIFACT, ['a@production'])


def test_aliases(send):
    (alias,) = send('GET', '/api/v1/aliases').json()['items']
    assert (alias['alias'], alias['number']) == ('a@production', 2)
    assert send('GET', '/api/v1/aliases/a@production').json()['history'][0]['artifact_id'] == ARTIFACT
    promoted = send('PUT', '/api/v1/aliases/b@staging', json={'artifact': 'e/r'}).json()
    assert (promoted['alias'], promoted['previous']) == ('b@staging', None)
    assert send('POST', '/api/v1/aliases/a@production/rollback').json()['previous'] == 'b' * 24
    assert send('DELETE', '/api/v1/aliases/b@staging').json()['alias'] == 'b@staging'
    nothing = send('POST', '/api/v1/aliases/b@staging/rollback')
    assert (nothing.status_code, nothing.json()['detail']) == (400, 'There is nothing before')
    assert send('GET', '/api/v1/aliases/no-stage').status_code == 422


def test_routes_whose_endpoints_no_executor_has_are_not_there(send):
    assert send('GET', '/api/v1/experiments').status_code == 404
    assert '/api/v1/experiments' not in json.dumps(send('GET', '/openapi.json').json()['paths'])


@contextmanager
def finetuner_serve(model, folder, ports, environment):
    """`finetuner serve MODEL` that has said that it is ready, and its log."""
    command = [FINETUNER, 'serve', model, '--port', str(ports[0]), '--http-port', str(ports[1])]
    log = folder / 'log'
    with log.open('w') as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: 'Finetuner is ready' in log.read_text(), 240, 'the announcement')
        yield process, log
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@pytest.mark.slow
def test_finetuner_serve_passes_tls_on(certificate, tmp_path, tiny_model):
    ports = free_ports(2)
    environment = clean_environment(
        FINETUNER_HOME=tmp_path,
        FINETUNER_CONFIG_DIR=tmp_path,
        FINETUNER_TLS_CERT=certificate[1],
        FINETUNER_TLS_KEY=certificate[2],
        FINETUNER_CA_CERT=certificate[0],
    )
    with finetuner_serve(tiny_model, tmp_path, ports, environment) as (process, log):
        host = f'grpcs://localhost:{ports[0]}'
        assert host in log.read_text() and f'https://localhost:{ports[1]}/docs' in log.read_text()
        environment |= {'FINETUNER_HOST': host, 'FINETUNER_TOKEN': 'none is needed here'}
        command = [FINETUNER, 'encode', 'fig']
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert '1 × 32' in done.stdout, done.stderr
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.slow
def test_finetuner_serve_ends_with_its_gateway(tmp_path, tiny_model):
    ports = free_ports(2)
    environment = clean_environment(FINETUNER_HOME=tmp_path, FINETUNER_CONFIG_DIR=tmp_path)
    with finetuner_serve(tiny_model, tmp_path, ports, environment) as (process, log):
        (gateway,) = {one.pid for one in psutil.net_connections('tcp') if one.laddr.port == ports[1] and one.pid}
        psutil.Process(gateway).kill()
        assert process.wait(60) != 0
        assert 'The gateway has ended' in log.read_text()
