"""Texts per second and latency of serving, ours against what else one would take: `python benchmarks/serving.py`.

Every row embeds the same texts with the same model, all-minilm-l6-v2, in the same run:

* floor: the arithmetic of the model on the real tokens, at the rate of a matrix product that is measured in this run;
* bare torch: what torch takes for batches that are tokenized and sorted before, and padded;
* sentence-transformers: its `encode`;
* in process: `finetuner.encode`;
* client: `finetuner.EncodeClient` over gRPC, whose answers are arrays;
* gRPC, HTTP: documents through `/encode`;
* v1/embeddings: OpenAI's request, its numbers in base64;
* infinity: the same request to an infinity server that runs already, where `--infinity` says.

Texts are of mixed length, log-normal, from 3 to 250 tokens. A setting is how many texts a request has, and how many
clients send at the same time. The rows take turns, so that a slow moment of the machine meets all; the medians of the
rounds count. CPU is that of all processes at work in cores, memory the peak of the service, both in the last round.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import requests
import typer
from rich.console import Console
from rich.table import Table

import finetuner
from finetuner.client.channel import Channel
from finetuner.documents import Document, DocumentArray
from finetuner.inference import InferenceEngine, load_engine

MODEL = 'all-minilm-l6-v2'
ROOT = Path(__file__).parents[1]
WORDS = ('account', 'card', 'refund', 'transfer', 'money', 'where', 'lost', 'twice', 'arrive', 'the', 'my', 'please')

Embed = Callable[[Sequence[str]], object]


@dataclass
class Row:
    """One way to embed texts, and what was measured of it in one setting."""

    name: str
    embed: Embed
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    cores: float = 0.0


@dataclass(frozen=True)
class Service:
    """`flows/encode.yml` in processes of its own."""

    process: psutil.Process
    grpc: int
    http: int
    start: float


def make_texts(count: int) -> list[str]:
    chooser = np.random.default_rng(0)
    lengths = chooser.lognormal(np.log(40), 0.8, count).clip(3, 250).astype(int)
    return [' '.join(chooser.choice(WORDS, length)) for length in lengths]


def floor_seconds(engine: InferenceEngine, texts: Sequence[str]) -> float:
    """What the products of matrices of a BERT take for the tokens of the texts, and nothing else."""
    import torch

    config = engine.encoder.backbone.config  # type: ignore[attr-defined]
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    lengths = np.array([len(row) for row in engine.preprocessor.features(list(texts))], np.float64)
    flops = layers * (2 * (4 * width**2 + 2 * width * inner) * lengths + 4 * width * lengths**2).sum()
    left, right = torch.rand(4096, width), torch.rand(width, inner)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return float(flops * min(seconds) / (2 * 4096 * width * inner))


@contextmanager
def running_service(threads: int) -> Iterator[Service]:
    grpc, http = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        own = {
            'FINETUNER_HOME': folder,
            'FINETUNER_CONFIG_DIR': folder,
            'FINETUNER_PORT': grpc,
            'FINETUNER_HTTP_PORT': http,
            'FINETUNER_ARTIFACT': MODEL,
            'FINETUNER_RATE_LIMIT': 0,
            'OMP_NUM_THREADS': threads,
        }
        command = [Path(sys.executable).with_name('jina'), 'flow', '--uses', ROOT / 'flows' / 'encode.yml']
        began = time.monotonic()
        with (Path(folder) / 'log').open('wb') as log:
            process = subprocess.Popen(
                command, env={**os.environ, **{key: str(value) for key, value in own.items()}}, stdout=log, stderr=log
            )
        try:
            while not is_ready(http):
                if process.poll() is not None:
                    sys.exit((Path(folder) / 'log').read_text()[-3000:])
                time.sleep(0.1)
            yield Service(psutil.Process(process.pid), grpc, http, time.monotonic() - began)
        finally:
            process.terminate()
            process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port: int = probe.getsockname()[1]
        return port


def is_ready(port: int) -> bool:
    try:
        return requests.get(f'http://127.0.0.1:{port}/health/ready', timeout=5).ok
    except requests.RequestException:
        return False


def bare_torch(engine: InferenceEngine, texts: Sequence[str]) -> Embed:
    features = dict(zip(texts, engine.preprocessor.features(list(texts)), strict=True))

    def embed(some: Sequence[str]) -> None:
        rows = sorted((features[text] for text in some), key=len)
        for start in range(0, len(rows), engine.batch_size):
            engine.run(engine.preprocessor.collate(rows[start : start + engine.batch_size]))

    return embed


def over_grpc(port: int) -> Embed:
    channel = Channel(f'grpc://127.0.0.1:{port}')

    def embed(texts: Sequence[str]) -> DocumentArray:
        from docarray.proto import DocListProto

        documents = DocumentArray([Document(text=text) for text in texts]).to_protobuf().SerializeToString()
        return DocumentArray.from_protobuf(DocListProto.FromString(channel.call('/encode', {}, documents)))

    return embed


def over_http(url: str, body: Callable[[Sequence[str]], object]) -> Embed:
    kept = threading.local()

    def embed(texts: Sequence[str]) -> object:
        if not hasattr(kept, 'session'):
            kept.session = requests.Session()
            kept.session.trust_env = False
        answer = kept.session.post(
            url, data=json.dumps(body(texts)), headers={'Content-Type': 'application/json'}, timeout=600
        )
        answer.raise_for_status()
        return answer.json()

    return embed


def openai_body(texts: Sequence[str]) -> object:
    return {'model': MODEL, 'input': list(texts), 'encoding_format': 'base64'}


def work(row: Row, batches: Sequence[Sequence[str]], clients: int, watched: Sequence[psutil.Process]) -> None:
    """Send all requests, so many at the same time, and put down what they took."""
    waiting: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()
    for batch in batches:
        waiting.put(batch)

    def client() -> None:
        while True:
            try:
                batch = waiting.get_nowait()
            except queue.Empty:
                return
            began = time.perf_counter()
            row.embed(batch)
            row.latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    before, began = cpu_seconds(watched), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    row.rates.append(sum(map(len, batches)) / seconds)
    row.cores = (cpu_seconds(watched) - before) / seconds


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def show(console: Console, title: str, rows: Sequence[Row], floor: float) -> None:
    table = Table('', 'texts/s', 'of theirs', 'of the floor', 'p50 ms', 'p99 ms', 'cores', title=title)
    theirs = statistics.median(next(row for row in rows if row.name == 'sentence-transformers').rates)
    table.add_row('floor', f'{floor:.0f}', f'{floor / theirs:.2f}', '1.00', '', '', '')
    for row in rows:
        rate = statistics.median(row.rates)
        p50, p99 = (1000 * float(np.percentile(row.latencies, share)) for share in (50, 99))
        table.add_row(
            row.name,
            f'{rate:.0f}',
            f'{rate / theirs:.2f}',
            f'{rate / floor:.2f}',
            f'{p50:.1f}',
            f'{p99:.1f}',
            f'{row.cores:.1f}',
        )
    console.print(table)


def main(
    texts: Annotated[int, typer.Option(help='Texts that every row embeds in a round.')] = 256,
    request: Annotated[list[int], typer.Option(help='Texts in a request; several may be given.')] = [1, 64],  # noqa: B006
    clients: Annotated[list[int], typer.Option(help='Clients at the same time; several may be given.')] = [1, 8],  # noqa: B006
    rounds: Annotated[int, typer.Option(help='Turns that each row has.')] = 5,
    threads: Annotated[int, typer.Option(help='Threads that compute, of every row; 0 is one for each core.')] = 0,
    infinity: Annotated[str, typer.Option(help='The address of an infinity server with the same model.')] = '',
) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    from finetuner.inference.pretrained import resolve

    count = threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    all_texts = make_texts(texts)
    began = time.monotonic()
    engine = load_engine(MODEL, is_onnx=False)
    start = time.monotonic() - began
    peer = SentenceTransformer(str(resolve(MODEL)), device='cpu')
    console = Console()
    with ExitStack() as stack:
        service = stack.enter_context(running_service(count))
        watched = [psutil.Process(), service.process, *service.process.children(recursive=True)]
        client = stack.enter_context(finetuner.EncodeClient(f'grpc://127.0.0.1:{service.grpc}', batch_size=1024))
        url = f'http://127.0.0.1:{service.http}'
        ways: dict[str, Embed] = {
            'bare torch': bare_torch(engine, all_texts),
            'sentence-transformers': lambda some: peer.encode(list(some), show_progress_bar=False),
            'in process': engine.encode_texts,
            'client': lambda some: client.encode(some, show_progress=False),
            'gRPC': over_grpc(service.grpc),
            'HTTP': over_http(f'{url}/encode', lambda some: {'data': [{'text': text} for text in some]}),
            'v1/embeddings': over_http(f'{url}/v1/embeddings', openai_body),
        }
        if infinity:
            ways['infinity'] = over_http(f'{infinity.rstrip("/")}/embeddings', openai_body)
        for embed in ways.values():  # whatever is done once is done
            embed(all_texts[:8])
        floor = texts / floor_seconds(engine, all_texts)
        for size in request:
            batches = [all_texts[first : first + size] for first in range(0, texts, size)]
            for together in clients:
                rows = [Row(name, embed) for name, embed in ways.items()]
                for _ in range(rounds):
                    for row in rows:
                        work(row, batches, together, watched)
                show(console, f'{size} texts in a request, {together} clients', rows, floor)
        memory = sum(process.memory_info().rss for process in watched[1:]) / 2**20
        console.print(
            f'start: in process {start:.1f} s, service {service.start:.1f} s; memory: service {memory:.0f} MiB'
        )


if __name__ == '__main__':
    typer.run(main)
