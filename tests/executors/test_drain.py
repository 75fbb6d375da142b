"""An executor that is told to end answers what it is at, and takes nothing more."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import requests
from jina import Executor, Flow
from jina import requests as on_requests

from executors.health import is_serving
from finetuner.client.channel import Channel
from finetuner.documents import Document, DocumentArray
from tests.flows import run_flow
from tests.integration.conftest import free_ports

SLOW = """
import time
from pathlib import Path
from jina import requests
from executors.encoder import FinetunerExecutor
from finetuner.documents import DocumentArray

class Slow(FinetunerExecutor):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        engine = self.served.models.of_texts().engine
        embed = engine.embed

        def slowly(features):
            Path('computes').touch()
            time.sleep(3)
            return embed(features)

        engine.embed = slowly

    @requests(on='/slow')
    def slow(self, docs: DocumentArray, **kwargs) -> DocumentArray:
        Path('began').touch()
        time.sleep(2)
        return docs
"""


class Slow(Executor):
    @on_requests(on='/slow')
    async def slow(self, docs: DocumentArray, **kwargs) -> DocumentArray:
        await asyncio.sleep(3)
        return docs


def build(ports: list[int]) -> Flow:
    flow = Flow(port=ports, protocol=['grpc', 'http'], host='127.0.0.1')
    return flow.config_gateway(uses='executors.gateway.FinetunerGateway').add(uses=Slow, allow_concurrent=True)


def test_a_gateway_that_is_told_to_end_answers_what_is_at_work_over_http_although_grpc_has_nothing_to_do():
    ports = free_ports(2)
    with run_flow(build, ports), ThreadPoolExecutor() as threads:
        answer = threads.submit(requests.post, f'http://127.0.0.1:{ports[1]}/slow', json={'data': [{'text': 'x'}]})
        time.sleep(1)
        assert not answer.done()
        (gateway,) = {one.pid for one in psutil.net_connections() if one.laddr[1:] == (ports[1],) and not one.raddr}
        psutil.Process(gateway).terminate()
        assert (answer.result().status_code, answer.result().json()['data'][0]['text']) == (200, 'x')


def test_a_request_at_work_is_answered(tmp_path, tiny_model):
    """Whether its handler runs in a thread or waits for the model. Meanwhile the health is told at once."""
    (tmp_path / 'slow.py').write_text(SLOW)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    jina = Path(sys.executable).with_name('jina')
    command = [jina, 'executor', '--native', '--uses', 'Slow', '--py-modules', 'slow.py', '--port', str(port)]
    command += ['--uses-with', f'artifact:{tiny_model}']
    process = subprocess.Popen(command, cwd=tmp_path)
    answers = []
    try:
        channel = Channel(f'grpc://127.0.0.1:{port}')
        deadline = time.monotonic() + 200
        while not is_serving(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        message = DocumentArray([Document(text='x')]).to_protobuf().SerializeToString()

        def ask(endpoint):
            answers.append(channel.call(endpoint, {}, message))

        callers = [threading.Thread(target=ask, args=[endpoint]) for endpoint in ('/slow', '/encode')]
        for caller in callers:
            caller.start()
        while not ((tmp_path / 'began').exists() and (tmp_path / 'computes').exists()):
            time.sleep(0.05)
        assert not answers
        waited = []
        for _ in range(3):
            began = time.monotonic()
            assert is_serving(port)
            waited.append(time.monotonic() - began)
        assert not answers and min(waited) < 0.1
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        for caller in callers:
            caller.join()
        assert len(answers) == 2, 'a request was broken off'
    finally:
        process.kill()
