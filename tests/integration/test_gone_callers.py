"""What is computed for a caller alone is given up when the caller has gone, and they have all of it otherwise."""

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import psutil
import pytest
import requests
from jina import Client, Executor, Flow
from jina import requests as on_requests

from finetuner.client import wire_pb2 as wire
from finetuner.client.channel import Channel, Connection
from finetuner.client.transport import make_request
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import EngineError
from tests.flows import run_flow
from tests.integration.conftest import free_ports, wait_until

pytestmark = pytest.mark.slow
BODY = b'{"data": [{"text": "plum"}]}'


class Slow(Executor):
    """Takes three seconds for each request, and writes down what became of it."""

    @on_requests(on=['/encode', '/ingest'])
    async def encode(self, docs: DocumentArray, **_) -> DocumentArray:
        self.tell('begun')
        try:
            await asyncio.sleep(3)
        except asyncio.CancelledError:
            self.tell('called off')
            raise
        self.tell('done')
        return docs

    @on_requests(on=['/logstream', '/logs'])
    async def follow(self, doc: Document, **_) -> Document:
        self.tell('begun')
        try:
            yield Document(text='', tags={'offset': 0})
            await asyncio.sleep(60)
        finally:
            self.tell('called off')

    def _dry_run_func(self, *_, **__):
        if Path(f'{self.workspace}.ill').exists():
            raise EngineError('the model fails again and again')

    def tell(self, what):
        with Path(f'{self.workspace}.log').open('a') as log:
            log.write(f'{what}\n')


def build(ports: list[int], folder: Path) -> Flow:
    flow = Flow(port=ports, protocol=['grpc', 'http'], host='127.0.0.1')
    flow = flow.config_gateway(uses='executors.gateway.FinetunerGateway')
    return flow.add(uses=Slow, allow_concurrent=True, name='slow', workspace=str(folder))


@pytest.fixture(scope='module')
def flow(tmp_path_factory):
    """The ports of a gateway by gRPC and HTTP, and the log of the executor behind it."""
    folder = tmp_path_factory.mktemp('slow')
    grpc_port, http_port = free_ports(2)
    with run_flow(build, [grpc_port, http_port], folder):
        yield grpc_port, http_port, folder


@pytest.fixture
def events(flow):
    """Reads what the executor has told since the test began."""
    before = read(flow[2])
    return lambda: read(flow[2])[len(before) :]


def read(folder):
    return [line for log in folder.rglob('*.log') for line in log.read_text().split('\n') if line]


def call_grpc(flow, endpoint):
    documents = wire.DocumentList(docs=[wire.Document()]).SerializeToString()
    return Connection(f'grpc://127.0.0.1:{flow[0]}').call.future(make_request(endpoint, {}, documents), timeout=60)


def post(flow, path):
    connection = socket.create_connection(('127.0.0.1', flow[1]))
    head = f'POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n'
    connection.sendall(head.encode() + BODY)
    return connection


def test_a_call_over_grpc_that_is_cancelled_is_called_off(flow, events):
    call = call_grpc(flow, '/encode')
    wait_until(lambda: events() == ['begun'], 10, 'the request')
    call.cancel()
    wait_until(lambda: events() == ['begun', 'called off'], 2, 'the end of the request')


def test_a_call_over_grpc_that_is_past_its_deadline_is_called_off(flow, events):
    documents = wire.DocumentList(docs=[wire.Document()]).SerializeToString()
    with pytest.raises(grpc.RpcError):
        Connection(f'grpc://127.0.0.1:{flow[0]}').call(make_request('/encode', {}, documents), timeout=1)
    wait_until(lambda: events() == ['begun', 'called off'], 2, 'the end of the request')


def test_a_request_over_http_whose_connection_is_closed_is_called_off(flow, events):
    with post(flow, '/encode'):
        wait_until(lambda: events() == ['begun'], 10, 'the request')
    wait_until(lambda: events() == ['begun', 'called off'], 2, 'the end of the request')


@pytest.mark.parametrize('path', ['/logstream', '/api/v1/experiments/e/runs/r/logstream'])
def test_a_stream_over_http_whose_connection_is_closed_is_called_off(flow, events, path):
    url = f'http://127.0.0.1:{flow[1]}{path}'
    with requests.get(url, headers={'Authorization': 'Bearer x'}, stream=True, timeout=10) as response:
        assert response.status_code == 200
        assert events() == ['begun']
    wait_until(lambda: events() == ['begun', 'called off'], 2, 'the end of the stream')


def test_a_stream_over_grpc_that_is_cancelled_is_called_off(flow, events):
    answers = Channel(f'grpc://127.0.0.1:{flow[0]}').stream('/logstream', {})
    assert next(answers).tags == {'offset': 0}
    answers.close()
    wait_until(lambda: events() == ['begun', 'called off'], 2, 'the end of the stream')


STREAM = """
import os, sys, threading
from jina import Client
from finetuner.documents import Document, DocumentArray

threading.Timer(2, lambda: os._exit(9)).start()
documents = (Document(text=str(number)) for number in range(12))
Client(port=int(sys.argv[1])).post('/encode', documents, request_size=1, return_type=DocumentArray, prefetch=1)
"""


def test_a_stream_that_breaks_off_leaves_the_gateway_in_peace(flow, events):
    client = subprocess.run([sys.executable, '-W', 'ignore', '-c', STREAM, str(flow[0])], timeout=60)
    assert client.returncode == 9
    wait_until(lambda: events() == ['begun', 'called off'], 2, 'the end of the request')
    gateway = next(
        process
        for process in psutil.Process().children(recursive=True)
        if any(one.laddr.port == flow[0] and one.status == 'LISTEN' for one in process.net_connections())
    )
    before = sum(gateway.cpu_times()[:2])
    time.sleep(2)
    assert sum(gateway.cpu_times()[:2]) - before < 0.2


def test_a_stream_is_answered_in_the_order_of_its_requests_if_that_is_asked(flow):
    documents = DocumentArray([Document(text=str(number)) for number in range(30)])
    answers = Client(port=flow[0]).post(
        '/encode', documents, request_size=1, return_type=DocumentArray, prefetch=20, results_in_order=True
    )
    assert [document.text for document in answers] == [str(number) for number in range(30)]


def test_what_leaves_something_goes_on(flow, events):
    call = call_grpc(flow, '/ingest')
    with post(flow, '/ingest'):
        wait_until(lambda: events() == ['begun', 'begun'], 10, 'the requests')
    call.cancel()
    wait_until(lambda: events() == ['begun', 'begun', 'done', 'done'], 10, 'the end of the requests')


def test_a_service_whose_executor_is_not_well_is_not_ready(flow):
    def ask():
        response = requests.get(f'http://127.0.0.1:{flow[1]}/health/ready', timeout=60)
        return response.status_code, response.json()

    [log] = flow[2].rglob('*.log')
    ill = log.with_suffix('.ill')
    ill.touch()
    sentence = 'the executor slow is not well: the model fails again and again'
    wait_until(lambda: ask() == (503, {'detail': sentence}), 10, 'the news that an executor is not well')
    ill.unlink()
    wait_until(lambda: ask() == (200, {'status': 'ready'}), 10, 'the service being ready again')


def test_who_waits_is_answered(flow, events):
    begun = time.monotonic()
    call = call_grpc(flow, '/encode')
    answer = requests.post(f'http://127.0.0.1:{flow[1]}/encode', data=BODY, timeout=60)
    assert answer.json()['data'][0]['text'] == 'plum'
    assert call.result()
    assert time.monotonic() - begun > 3
    assert events() == ['begun', 'begun', 'done', 'done']
