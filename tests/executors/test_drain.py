"""An executor that is told to end answers what it is at, and takes nothing more."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from executors.health import is_serving
from finetuner.client.channel import Channel
from finetuner.documents import Document, DocumentArray

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
