"""Half an hour of good, bad and vanishing clients at one service: `python benchmarks/soak.py`, or `make soak`.

Good clients send texts over gRPC, HTTP and `/v1/embeddings`, in requests of all sizes, and compare the answers with
what the model gives in this process. Meanwhile others send what is broken in one of many ways, and others again go
away before they are answered. Shown are how many requests of each there were, what went wrong, and the memory of
each process over time. It ends with 1 if a good request failed or got a wrong answer, if a bad one was answered with
an error of the service, or if the memory of a process grew between the second and the last quarter.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import psutil
import requests
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from serving import MODEL, make_texts
from traffic import Service, running_service

import finetuner
from finetuner.client.channel import Connection
from finetuner.client.transport import make_request
from finetuner.documents import Document, DocumentArray
from finetuner.inference import load_engine

TEXTS = 600
TOLERANCE = 1e-3
"""Between two embeddings of a text: a batch of other texts changes the last digits."""
GROWTH = 0.05
"""Of the memory of a process, or `LEAST` MiB, that are no growth: it goes up and down by as much."""
LEAST = 40
SAMPLE = 2.0
"""Seconds between two looks at the memory."""


@dataclass
class Counts:
    """What was sent, and what went wrong, by kind."""

    sent: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    texts: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, texts: int = 0, wrong: str | None = None) -> None:
        with self.lock:
            self.sent[kind] += 1
            self.texts += texts
            if wrong:
                self.wrong.append(f'{kind}: {wrong}'[:300])


# good clients: the embeddings of some texts


def good_ways(service: Service, model: str) -> dict[str, Callable[[list[str]], np.ndarray]]:
    client = finetuner.EncodeClient(f'grpc://127.0.0.1:{service.grpc}', batch_size=64)
    http = finetuner.EncodeClient(f'http://127.0.0.1:{service.http}', batch_size=64)
    url = f'http://127.0.0.1:{service.http}'

    def openai(texts: list[str]) -> np.ndarray:
        body = {'model': model, 'input': texts, 'encoding_format': 'base64'}
        answer = requests.post(f'{url}/v1/embeddings', json=body, timeout=300)
        answer.raise_for_status()
        rows = [np.frombuffer(base64.b64decode(row['embedding']), '<f4') for row in answer.json()['data']]
        return np.stack(rows)

    def documents(texts: list[str]) -> np.ndarray:
        body = {'data': [{'id': str(number), 'text': text} for number, text in enumerate(texts)]}
        answer = requests.post(f'{url}/encode', json=body, timeout=300)
        answer.raise_for_status()
        found = answer.json()['data']
        assert [row['id'] for row in found] == [str(number) for number in range(len(texts))], 'order of documents'
        return np.array([row['embedding'] for row in found], np.float32)

    return {
        'EncodeClient, gRPC': lambda texts: client.encode(texts, show_progress=False),
        'EncodeClient, HTTP': lambda texts: http.encode(texts, show_progress=False),
        '/v1/embeddings': openai,
        '/encode': documents,
    }


def be_good(
    name: str, embed: Callable[[list[str]], np.ndarray], expected: dict[str, np.ndarray], counts: Counts, end: float
) -> None:
    chooser, texts = random.Random(name), list(expected)
    while time.monotonic() < end:
        some = chooser.choices(texts, k=chooser.choice([1, 1, 1, 2, 8, 64, 200]))
        wrong = None
        try:
            difference = np.abs(embed(some) - np.stack([expected[text] for text in some])).max()
            if not difference < TOLERANCE:
                wrong = f'the embeddings differ by {difference}'
        except Exception as error:  # whatever it is, it is to be counted
            wrong = repr(error)
        counts.add(name, len(some), wrong)


# bad clients: (status of HTTP, or the error of gRPC) is to be one of the caller, not of the service

BODIES: Sequence[Any] = (
    b'',
    b'{',
    b'[' * 100_000,
    b'\xff\xfe\x00',
    b'{"data": [{"text": "half \\ud800"}]}',
    b'{"data": [{"text": 7}]}',
    b'{"data": [{"tensor": [1, 2, 3]}]}',
    b'{"data": [{"blob": "!!!"}]}',
    b'{"data": [{"uri": "file:///etc/passwd"}]}',
    b'{"data": [{"uri": "http://127.0.0.1:1/x"}]}',
    b'{"data": [{}], "parameters": {"batch_size": -1}}',
    b'{"data": [{"text": "a"}], "parameters": {"truncate_dim": 1e308}}',
    b'{"data": [{"text": "a"}], "parameters": {"truncate_dim": NaN}}',
    b'{"data": {"a": {"b": []}}}',
    b'{"data": [' + b'{"text": "a"},' * 50 + b'null]}',
    b'{"input": "a"}',
    b'{"input": [], "model": "other"}',
    b'{"input": [[1, -1]], "model": "all-minilm-l6-v2"}',
)
DOCUMENTS = (
    DocumentArray([Document(blob=b'\x89PNG but not really')]),
    DocumentArray([Document(tensor=np.zeros((2, 3), np.float32))]),
    DocumentArray([Document(uri='/etc/passwd')]),
    DocumentArray([Document()]),
    DocumentArray([Document(text='a', tags={'x': 'y' * 10_000}), Document()]),
)
CALLERS = ('DataError', 'ParameterError', 'AuthenticationError', 'ArtifactNotFoundError')
"""Errors that tell a caller that something is wrong with the request."""
PARAMETERS: Sequence[dict[str, Any]] = ({}, {'truncate_dim': -3}, {'unknown': 1}, {'model': 'no-such'}, {'token': 'x'})


def bad_ways(service: Service, chooser: random.Random) -> dict[str, Callable[[], str | None]]:
    """Each sends something that is broken, and gives what is wrong with the answer, if anything is."""
    connection = Connection(f'grpc://127.0.0.1:{service.grpc}')
    url = f'http://127.0.0.1:{service.http}'

    def http() -> str | None:
        path = chooser.choice(['/encode', '/encode', '/v1/embeddings', '/encode_texts', '/nowhere'])
        answer = requests.post(url + path, data=chooser.choice(BODIES), timeout=60)
        is_fault = answer.status_code >= 500 and answer.status_code != 503
        return f'{path} answers {answer.status_code}: {answer.text[:100]}' if is_fault else None

    def over_grpc() -> str | None:
        docs = chooser.choice(DOCUMENTS).to_protobuf().SerializeToString()
        garbage = chooser.random() < 0.3
        endpoint = chooser.choice(['/encode', '/encode', '/encode_texts', '/nowhere'])
        request = make_request(endpoint, chooser.choice(PARAMETERS), chooser.randbytes(200) if garbage else docs)
        try:
            error = connection.call(request, timeout=60).header.status.exception
        except grpc.RpcError as failure:
            is_callers = failure.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
            return None if is_callers else f'{endpoint}: {failure.code()}: {failure.details()}'
        is_callers = error.name in ('', *CALLERS) or endpoint == '/nowhere'
        return None if is_callers else f'{endpoint}: {error.name}: {error.args}'

    def noise() -> str | None:
        port = chooser.choice([service.grpc, service.http])
        with socket.create_connection(('127.0.0.1', port), 5) as connected:
            connected.sendall(chooser.randbytes(chooser.randint(1, 5000)))
        return None

    return {'bad, HTTP': http, 'bad, gRPC': over_grpc, 'noise': noise}


def vanishing_ways(service: Service, texts: list[str], chooser: random.Random) -> dict[str, Callable[[], str | None]]:
    """Each sends a good request and goes away before, or while, it is answered."""

    def some() -> list[str]:
        return chooser.choices(texts, k=chooser.choice([1, 30, 300]))

    def http() -> str | None:
        body = json.dumps({'data': [{'text': text} for text in some()]}).encode()
        head = f'POST /encode HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}'
        sent = head.encode() + b'\r\n\r\n' + body
        with socket.create_connection(('127.0.0.1', service.http), 5) as connected:
            connected.sendall(sent[: chooser.choice([len(sent) // 2, len(sent)])])
            time.sleep(chooser.uniform(0, 0.5))
        return None

    def over_grpc() -> str | None:
        connection = Connection(f'grpc://127.0.0.1:{service.grpc}')
        docs = DocumentArray([Document(text=text) for text in some()]).to_protobuf().SerializeToString()
        call = connection.call.future(make_request('/encode', {}, docs))
        time.sleep(chooser.uniform(0, 0.5))
        if chooser.random() < 0.5:
            call.cancel()
        connection.channel.close()
        return None

    return {'vanishing, HTTP': http, 'vanishing, gRPC': over_grpc}


def be_bad(name: str, act: Callable[[], str | None], counts: Counts, pause: float, end: float) -> None:
    while time.monotonic() < end:
        try:
            wrong = act()
        except Exception as error:  # as above
            wrong = repr(error)
        counts.add(name, wrong=wrong)
        time.sleep(pause)


def watch_memory(processes: dict[str, psutil.Process], end: float) -> dict[str, list[float]]:
    """MiB of each process, over time."""
    samples: dict[str, list[float]] = {name: [] for name in processes}
    began = time.monotonic()
    with Progress() as progress:
        task = progress.add_task('Soaking', total=end - began)
        while time.monotonic() < end:
            for name, process in processes.items():
                samples[name].append(process.memory_info().rss / 2**20)
            progress.update(task, completed=time.monotonic() - began)
            time.sleep(SAMPLE)
    return samples


def show_memory(console: Console, samples: dict[str, list[float]]) -> list[str]:
    """Print it; returned is which processes have grown."""
    table = Table('process', *(f'quarter {number}' for number in range(1, 5)), 'peak', title='Memory, MiB (median)')
    grown = []
    for name, taken in samples.items():
        size = max(1, len(taken) // 4)
        quarters = [statistics.median(taken[first : first + size]) for first in range(0, 4 * size, size)]
        table.add_row(name, *(f'{quarter:.0f}' for quarter in quarters), f'{max(taken):.0f}')
        if quarters[3] - quarters[1] > max(LEAST, GROWTH * quarters[1]):
            grown.append(f'process {name} grew from {quarters[1]:.0f} to {quarters[3]:.0f} MiB')
    console.print(table)
    return grown


def main(minutes: Annotated[float, typer.Option(help='How long.')] = 30.0) -> None:
    from finetuner.inference.backbones import load_encoder
    from training.export import export

    texts = make_texts(TEXTS)
    encoder = load_encoder(MODEL)
    expected = dict(zip(texts, load_engine(encoder).encode_texts(texts), strict=True))
    counts, console = Counts(), Console()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        artifact = export(encoder, Path(folder) / 'model')
        service = stack.enter_context(running_service(artifact, psutil.cpu_count() or 1))
        end = time.monotonic() + 60 * minutes
        threads = [
            threading.Thread(target=be_good, args=(name, embed, expected, counts, end), daemon=True)
            for name, embed in good_ways(service, str(artifact)).items()
        ]
        others = {**bad_ways(service, random.Random(1)), **vanishing_ways(service, texts, random.Random(2))}
        threads += [
            threading.Thread(target=be_bad, args=(name, act, counts, 0.1, end), daemon=True)
            for name, act in others.items()
        ]
        for thread in threads:
            thread.start()
        processes = [service.process, *service.process.children(recursive=True)]
        samples = watch_memory(dict(zip(('Flow', 'gateway and encoder'), processes, strict=True)), end)
        for thread in threads:
            thread.join()
        wrong = counts.wrong + show_memory(console, samples)
        is_well = requests.get(f'http://127.0.0.1:{service.http}/health/ready', timeout=30).ok
    table = Table('client', 'requests', title=f'{counts.texts} texts in {minutes:g} minutes')
    for kind, number in sorted(counts.sent.items()):
        table.add_row(kind, str(number))
    console.print(table)
    if not is_well:
        wrong.append('the service is not ready at the end')
    for each in wrong[:20]:
        console.print(f'[red]wrong[/] {each}', highlight=False)
    console.print(f'{len(wrong)} wrong')
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    typer.run(main)
