"""Texts per second and latency of serving, ours against what else one would take: `python benchmarks/serving.py`.

Every row embeds the same texts with the same model, all-minilm-l6-v2, in the same run:

* floor: the arithmetic of the model on the real tokens, at the rate of a matrix product in fp32 that is measured in
  this run;
* bare torch, bare onnxruntime: what they take for batches that are tokenized and sorted before, and padded; the ONNX
  model is that of an artifact;
* sentence-transformers: its `encode`;
* in process: `finetuner.encode` in fp32, in bf16, and with an ONNX model in int8, as `onnx_precision` makes one;
* client: `finetuner.EncodeClient` over gRPC, whose answers are arrays;
* gRPC, HTTP: documents through `/encode`;
* v1/embeddings: OpenAI's request, its numbers in base64;
* infinity: the same request to an infinity server, with torch, and with optimum, whose ONNX model has its operators
  fused.

Texts are of mixed length, log-normal, from 3 to 250 tokens. A setting is how many texts a request has, and how many
clients send at the same time. The rows take turns, so that a slow moment of the machine meets all; the medians of the
rounds count. CPU is that of all processes at work, in cores, in the last round; memory the peak of a service.
"""

from __future__ import annotations

import json
import os
import queue
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
from infinity import fused_model, is_installed, running_infinity
from ports import free_port
from rich.console import Console
from rich.table import Table

import finetuner
from finetuner.client.channel import Channel
from finetuner.documents import Document, DocumentArray
from finetuner.inference import InferenceEngine, load_engine

MODEL = 'all-minilm-l6-v2'
ROOT = Path(__file__).parents[1]
WORDS = ('account', 'card', 'refund', 'transfer', 'money', 'where', 'lost', 'twice', 'arrive', 'the', 'my', 'please')

THEIRS, OURS, CLIENT = 'sentence-transformers', 'in process', 'client'
# texts in a request, clients at the same time, texts of a round
SETTINGS = (
    (1, 1, 64),
    (1, 8, 128),
    (1, 64, 256),
    (8, 1, 128),
    (8, 8, 256),
    (8, 64, 512),
    (64, 1, 256),
    (64, 8, 512),
    (1024, 1, 1024),
)

Embed = Callable[[Sequence[str]], object]


@dataclass
class Row:
    """One way to embed texts, and what was measured of it in one setting."""

    name: str
    embed: Embed
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    cores: float = 0.0

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def latency(self, share: int) -> float:
        """In ms, that so many of 100 requests do not exceed."""
        return 1000 * float(np.percentile(self.latencies, share))


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


def is_ready(port: int) -> bool:
    try:
        return requests.get(f'http://127.0.0.1:{port}/health/ready', timeout=5).ok
    except requests.RequestException:
        return False


def bare(engine: InferenceEngine, texts: Sequence[str]) -> Embed:
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
    theirs = next(row for row in rows if row.name == THEIRS).rate
    table.add_row('floor', f'{floor:.0f}', f'{floor / theirs:.2f}', '1.00', '', '', '')
    for row in rows:
        rate = row.rate
        table.add_row(
            row.name,
            f'{rate:.0f}',
            f'{rate / theirs:.2f}',
            f'{rate / floor:.2f}',
            f'{row.latency(50):.1f}',
            f'{row.latency(99):.1f}',
            f'{row.cores:.1f}',
        )
    console.print(table)


def check_goals(console: Console, measured: dict[tuple[int, int], dict[str, Row]], floor: float) -> None:
    """What serving is to reach on two cores, where the settings that tell were measured."""
    goals: list[tuple[str, float, float, bool]] = []

    def goal(what: str, found: float, wanted: float, at_most: bool = False) -> None:
        goals.append((what, found, wanted, (found <= wanted) if at_most else (found >= wanted)))

    if rows := measured.get((1024, 1)):
        goal('in process, fp32, of sentence-transformers: 1024 texts', rows[OURS].rate / rows[THEIRS].rate, 1.3)
        goal('in process, fp32, of the floor: 1024 texts', rows[OURS].rate / floor, 0.75)
        for name in ('in process, bf16', 'in process, int8'):
            goal(f'{name}, of sentence-transformers: 1024 texts', rows[name].rate / rows[THEIRS].rate, 2.0)
        goal('client over gRPC, of in process: 1024 texts', rows[CLIENT].rate / rows[OURS].rate, 0.9)
    if rows := measured.get((1, 64)):
        in_bulk = next(rows for (size, _), rows in reversed(measured.items()) if size >= 64)[OURS].rate
        goal('client over gRPC, 64 with one text each, of in process in bulk', rows[CLIENT].rate / in_bulk, 0.8)
    if rows := measured.get((1, 1)):
        over = rows[CLIENT].latency(50) - rows['bare torch'].latency(50)
        goal('client over gRPC, one text: ms (p50) beyond bare torch', over, 3.0, at_most=True)
    for (size, clients), rows in measured.items():
        for name in rows:
            if name.startswith('infinity'):
                ratio = rows['v1/embeddings'].rate / rows[name].rate
                goal(f'v1/embeddings, of {name}: {size} texts, {clients} clients', ratio, 2.0)
    table = Table('goal', 'found', 'wanted', '', title='Goals, on two cores')
    for what, found, wanted, is_met in goals:
        table.add_row(what, f'{found:.2f}', f'{wanted:.2f}', '[green]met[/]' if is_met else '[red]missed[/]')
    console.print(table)


def peak_memory(process: psutil.Process) -> float:
    """MiB that a process and those that it has started had in memory at most, added up."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        status = Path(f'/proc/{one.pid}/status').read_text()
        total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith('VmHWM'))
    return total / 1024


def main(
    rounds: Annotated[int, typer.Option(help='Turns that each row has.')] = 5,
    threads: Annotated[int, typer.Option(help='Threads that compute, of every row; 0 is one for each core.')] = 0,
    setting: Annotated[
        list[str] | None, typer.Option(help='TEXTSxCLIENTS, such as 64x8; several may be given. Default all.')
    ] = None,
) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    from finetuner.inference.pretrained import resolve
    from training.export import export

    settings = [each for each in SETTINGS if not setting or f'{each[0]}x{each[1]}' in setting]
    count = threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    all_texts = make_texts(max(texts for _, _, texts in settings))
    began = time.monotonic()
    engine = load_engine(MODEL, is_onnx=False)
    start = time.monotonic() - began
    model = Path(resolve(MODEL))
    peer = SentenceTransformer(str(model), device='cpu')
    console = Console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        exported = {
            precision: load_engine(
                export(engine.encoder, folder / precision, precision),  # type: ignore[attr-defined, arg-type]
                is_onnx=True,
                intra_op_num_threads=count,
            )
            for precision in ('fp32', 'int8')
        }
        service = stack.enter_context(running_service(count))
        client = stack.enter_context(finetuner.EncodeClient(f'grpc://127.0.0.1:{service.grpc}', batch_size=1024))
        url = f'http://127.0.0.1:{service.http}'
        ways: dict[str, Embed] = {
            'bare torch': bare(engine, all_texts),
            'bare onnxruntime': bare(exported['fp32'], all_texts),
            THEIRS: lambda some: peer.encode(list(some), show_progress_bar=False),
            OURS: engine.encode_texts,
            'in process, bf16': load_engine(MODEL, precision='bf16').encode_texts,
            'in process, int8': exported['int8'].encode_texts,
            CLIENT: lambda some: client.encode(some, show_progress=False),
            'gRPC': over_grpc(service.grpc),
            'HTTP': over_http(f'{url}/encode', lambda some: {'data': [{'text': text} for text in some]}),
            'v1/embeddings': over_http(f'{url}/v1/embeddings', openai_body),
        }
        servers = {'service': (service.process, service.start)}
        if is_installed():
            for name, source in (('torch', model), ('optimum', fused_model(model, folder))):
                server = stack.enter_context(running_infinity(source, name, MODEL, count))
                ways[f'infinity, {name}'] = over_http(f'{server.url}/embeddings', openai_body)
                servers[f'infinity, {name}'] = (server.process, server.start)
        watched = [psutil.Process()]
        for process, _ in servers.values():
            watched += [process, *process.children(recursive=True)]
        for embed in ways.values():  # whatever is done once is done
            embed(all_texts[:8])
        seconds = floor_seconds(engine, all_texts)
        floor = len(all_texts) / seconds
        measured: dict[tuple[int, int], dict[str, Row]] = {}
        for size, together, texts in settings:
            batches = [all_texts[first : first + size] for first in range(0, texts, size)]
            rows = {name: Row(name, embed) for name, embed in ways.items()}
            for _ in range(rounds):
                for row in rows.values():
                    work(row, batches, together, watched)
            measured[size, together] = rows
            show(console, f'{size} texts in a request, {together} clients', list(rows.values()), floor)
        check_goals(console, measured, floor)
        started = Table('', 'start, s', 'peak memory, MiB')
        started.add_row(OURS, f'{start:.1f}', '')
        for name, (process, took) in servers.items():
            started.add_row(name, f'{took:.1f}', f'{peak_memory(process):.0f}')
        console.print(started)


if __name__ == '__main__':
    typer.run(main)
