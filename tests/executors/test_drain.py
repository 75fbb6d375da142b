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
from jina import Executor, requests
from executors.drain import drain_at_shutdown
from finetuner.documents import DocumentArray

class Slow(Executor):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        drain_at_shutdown()

    @requests(on='/slow')
    def slow(self, docs: DocumentArray, **kwargs) -> DocumentArray:
        open('began', 'w').close()
        time.sleep(2)
        return docs
"""


def test_a_request_at_work_is_answered(tmp_path):
    (tmp_path / 'slow.py').write_text(SLOW)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    jina = Path(sys.executable).with_name('jina')
    command = [jina, 'executor', '--native', '--uses', 'Slow', '--py-modules', 'slow.py', '--port', str(port)]
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
        request = threading.Thread(target=lambda: answers.append(channel.call('/slow', {}, message)))
        request.start()
        while not (tmp_path / 'began').exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        request.join()
        assert answers, 'the request was broken off'
    finally:
        process.kill()
