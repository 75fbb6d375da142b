"""What the benchmarks of serving share: a service, clients that ask at the same time, and a table of what they saw."""

from __future__ import annotations

import os
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from servers import answers, free_port, listens, running

from finetuner.client.channel import Channel
from finetuner.documents import Document, DocumentArray
from finetuner.service import WAITING

ROOT = Path(__file__).parents[1]
JINA = Path(sys.executable).with_name('jina')

Embed = Callable[[Sequence[Any]], object]


@dataclass
class Row:
    """One way to embed, and what was measured of it in one setting."""

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
    """A Flow that encodes, in processes of its own."""

    process: psutil.Process
    grpc: int
    http: int
    start: float


@dataclass(frozen=True)
class Alone:
    """An encoder without a gateway, in a process of its own."""

    process: psutil.Process
    port: int
    start: float


@contextmanager
def running_service(
    artifact: str | Path, threads: int, flow: str = 'serve.yml', **further: object
) -> Iterator[Service]:
    """One of `flows/`, default the one that `finetuner serve ARTIFACT` runs."""
    grpc, http = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        own = {
            'FINETUNER_HOME': folder,
            'FINETUNER_CONFIG_DIR': folder,
            'FINETUNER_PORT': grpc,
            'FINETUNER_HTTP_PORT': http,
            'FINETUNER_ARTIFACT': artifact,
            'FINETUNER_RATE_LIMIT': 0,
            **further,
        }
        command = [JINA, 'flow', '--uses', ROOT / 'flows' / flow]
        url = f'http://127.0.0.1:{http}/health/ready'
        with running(command, _variables(threads, own), lambda: answers(url)) as (process, start):
            yield Service(process, grpc, http, start)


@contextmanager
def running_executor(artifact: str | Path, threads: int) -> Iterator[Alone]:
    """As `jina executor` starts one, and a container."""
    port = free_port()
    command = [JINA, 'executor', '--uses', 'executors.encoder.FinetunerExecutor', '--port', str(port)]
    with tempfile.TemporaryDirectory() as folder:
        own = {'FINETUNER_HOME': folder, 'FINETUNER_CONFIG_DIR': folder, 'FINETUNER_ARTIFACT': artifact}
        with running(command, _variables(threads, own), lambda: listens(port)) as (process, start):
            yield Alone(process, port, start)


def _variables(threads: int, own: Mapping[str, object]) -> dict[str, str]:
    further = {'OMP_NUM_THREADS': threads, **WAITING, **own}
    return {**os.environ, **{name: str(value) for name, value in further.items()}}


def over_grpc(port: int, field: str, **parameters: Any) -> Callable[[Sequence[Any]], DocumentArray]:
    """Documents through `/encode`, whose contents are in one field."""
    channel = Channel(f'grpc://127.0.0.1:{port}')

    def embed(contents: Sequence[Any]) -> DocumentArray:
        from docarray.proto import DocListProto

        documents = DocumentArray([Document(**{field: content}) for content in contents]).to_protobuf()
        return DocumentArray.from_protobuf(
            DocListProto.FromString(channel.call('/encode', parameters, documents.SerializeToString()))
        )

    return embed


def flops_per_second(rows: int, width: int, inner: int) -> float:
    """Of torch's product of two matrices in fp32, [rows, width] by [width, inner], the best of some."""
    import torch

    left, right = torch.rand(rows, width), torch.rand(width, inner)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return 2 * rows * width * inner / min(seconds)


def work(row: Row, batches: Sequence[Sequence[Any]], clients: int, watched: Sequence[psutil.Process]) -> None:
    """Send all requests, so many at the same time, and put down what they took."""
    waiting: queue.SimpleQueue[Sequence[Any]] = queue.SimpleQueue()
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


def beyond(ways: Mapping[str, Embed], bare: str, items: Sequence[Any], rounds: int) -> dict[str, float]:
    """What each way takes for one item alone beyond a bare model, in ms: the median of the differences, item by item.

    All of them get an item in turns, each twice, and the second time counts: what another one has put out of the caches
    is back, and between the two sides of a difference lies less than a second.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for item in items:
            for name, embed in ways.items():
                embed([item])
                began = time.perf_counter()
                embed([item])
                seconds[name].append(time.perf_counter() - began)
    return {
        name: 1000 * float(np.median(np.subtract(taken, seconds[bare])))
        for name, taken in seconds.items()
        if name != bare
    }


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def show(console: Console, title: str, rows: Sequence[Row], floor: float, theirs: str, items: str = 'texts') -> None:
    table = Table('', f'{items}/s', 'of theirs', 'of the floor', 'p50 ms', 'p99 ms', 'cores', title=title)
    their_rate = next(row for row in rows if row.name == theirs).rate
    table.columns[0].no_wrap = True
    table.add_row('floor', f'{floor:.0f}', f'{floor / their_rate:.2f}', '1.00', '', '', '')
    for row in rows:
        rate = row.rate
        table.add_row(
            row.name,
            f'{rate:.0f}',
            f'{rate / their_rate:.2f}',
            f'{rate / floor:.2f}',
            f'{row.latency(50):.1f}',
            f'{row.latency(99):.1f}',
            f'{row.cores:.1f}',
        )
    console.print(table)


def peak_memory(process: psutil.Process) -> float:
    """MiB that a process and those that it has started had in memory at most, added up."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        status = Path(f'/proc/{one.pid}/status').read_text()
        total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith('VmHWM'))
    return total / 1024
