"""Texts per second and latency of serving, ours against what else one would take: `python benchmarks/serving.py`.

Every row embeds the same texts with the same model, all-minilm-l6-v2, in the same run:

* floor: the arithmetic of the model on the real tokens, at the rate of a matrix product in fp32 that is measured in
  this run;
* bare torch, bare onnxruntime: what they take for batches that are tokenized and sorted before, and padded; the ONNX
  model is that of an artifact;
* sentence-transformers: its `encode`;
* in process: the engine that a service chooses for an artifact in fp32, that of torch in bf16, and an ONNX model in
  int8, as `onnx_precision` makes one;
* client: `finetuner.EncodeClient` over gRPC, whose answers are arrays, to the service of `finetuner serve ARTIFACT`,
  whose gateway has the encoder in its process (`flows/serve.yml`), to one whose gateway has it in another
  (`flows/encode.yml`), and to an encoder alone, as a container is one;
* gRPC, HTTP: documents through `/encode`, of a service that has the artifact;
* v1/embeddings: OpenAI's request, its numbers in base64, to services in fp32, bf16 and int8;
* infinity: the same request to an infinity server, with torch in fp32 and bf16, and with optimum, whose ONNX model has
  its operators fused.

Texts are of mixed length, log-normal, from 3 to 250 tokens. A setting is how many texts a request has, and how many
clients send at the same time. The rows take turns, so that a slow moment of the machine meets all; the medians of the
rounds count. What a single text takes beyond the bare model is measured apart, text by text in turns. CPU is that of
all processes at work, in cores, in the last round; memory the peak of a service.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import requests
import typer
from infinity import fused_model, is_installed, running_infinity
from rich.console import Console
from rich.table import Table
from traffic import (
    Embed,
    Row,
    beyond,
    flops_per_second,
    over_grpc,
    peak_memory,
    running_executor,
    running_service,
    show,
    work,
)

import finetuner
from finetuner.inference import InferenceEngine, load_engine

MODEL = 'all-minilm-l6-v2'
WORDS = ('account', 'card', 'refund', 'transfer', 'money', 'where', 'lost', 'twice', 'arrive', 'the', 'my', 'please')

BARE = 'bare torch', 'bare onnxruntime'
THEIRS, OURS = 'sentence-transformers', 'in process'
CLIENT, APART, ALONE, IN_INT8 = 'client', 'client, gateway apart', 'client, no gateway', 'client, int8'
OPENAI = 'v1/embeddings'
# texts in a request, clients at the same time, texts of a round
SETTINGS = (
    (1, 1, 64),
    (1, 8, 128),
    (1, 64, 384),
    (8, 1, 64),
    (8, 8, 192),
    (8, 64, 512),
    (64, 1, 192),
    (64, 8, 512),
    (1024, 1, 1024),
)


def make_texts(count: int) -> list[str]:
    chooser = np.random.default_rng(0)
    lengths = chooser.lognormal(np.log(40), 0.8, count).clip(3, 250).astype(int)
    return [' '.join(chooser.choice(WORDS, length)) for length in lengths]


def floor_seconds(engine: InferenceEngine, texts: Sequence[str]) -> float:
    """What the products of matrices of a BERT take for the tokens of the texts, and nothing else."""
    config = engine.encoder.backbone.config  # type: ignore[attr-defined]
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    lengths = np.array([len(row) for row in engine.preprocessor.features(list(texts))], np.float64)
    flops = layers * (2 * (4 * width**2 + 2 * width * inner) * lengths + 4 * width * lengths**2).sum()
    return float(flops / flops_per_second(4096, width, inner))


def bare(engine: InferenceEngine, texts: Sequence[str]) -> Embed:
    features = dict(zip(texts, engine.preprocessor.features(list(texts)), strict=True))

    def embed(some: Sequence[str]) -> None:
        rows = sorted((features[text] for text in some), key=len)
        for start in range(0, len(rows), engine.batch_size):
            engine.run(engine.preprocessor.collate(rows[start : start + engine.batch_size]))

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


def openai_body(model: str) -> Callable[[Sequence[str]], object]:
    return lambda texts: {'model': model, 'input': list(texts), 'encoding_format': 'base64'}


def check_goals(
    console: Console, measured: dict[tuple[int, int], dict[str, Row]], floor: float, over: dict[str, float]
) -> None:
    """What serving is to reach on two cores, where the settings that tell were measured.

    :param over: ms that a single text takes beyond the bare model, by the way that it goes.
    """
    goals: list[tuple[str, float, float, bool]] = []

    def goal(what: str, found: float, wanted: float, at_most: bool = False) -> None:
        goals.append((what, found, wanted, (found <= wanted) if at_most else (found >= wanted)))

    if rows := measured.get((1024, 1)):
        goal('in process, fp32, of sentence-transformers: 1024 texts', rows[OURS].rate / rows[THEIRS].rate, 1.3)
        goal('in process, fp32, of the floor: 1024 texts', rows[OURS].rate / floor, 0.75)
        for name in sorted({'in process, bf16', 'in process, int8'} & rows.keys()):
            goal(f'{name}, of sentence-transformers: 1024 texts', rows[name].rate / rows[THEIRS].rate, 2.0)
        goal('client over gRPC, of in process: 1024 texts', rows[CLIENT].rate / rows[OURS].rate, 0.9)
    if rows := measured.get((1, 64)):
        goal('client over gRPC, of in process: 64 with one text each', rows[CLIENT].rate / rows[OURS].rate, 0.9)
        bulk = [rows for (size, clients), rows in measured.items() if size >= 64 and clients == 1]
        for name, wanted in ((CLIENT, 0.8), (OURS, 0.9)) if bulk else ():
            ratio = rows[CLIENT].rate / bulk[-1][name].rate
            goal(f'client over gRPC, 64 with one text each, of {name} in bulk', ratio, wanted)
    for name, ms in over.items():
        goal(f'{name}, over gRPC, one text: ms (p50) beyond the bare model', ms, 3.0, at_most=True)
    table = Table('goal', 'found', 'wanted', '', title='Goals, on two cores')
    for what, found, wanted, is_met in goals:
        table.add_row(what, f'{found:.2f}', f'{wanted:.2f}', '[green]met[/]' if is_met else '[red]missed[/]')
    console.print(table)


def compare_with_infinity(console: Console, measured: dict[tuple[int, int], dict[str, Row]]) -> None:
    """The same request in the same precision; and in int8, which it has not, of the fastest of its engines."""
    table = Table('texts', 'clients', 'fp32', 'bf16', 'int8', 'client, int8', title='v1/embeddings, of infinity')
    # ours, and what is in the names of theirs
    pairs = [(f'{OPENAI}, fp32', 'fp32'), (f'{OPENAI}, bf16', 'bf16'), (f'{OPENAI}, int8', ''), (IN_INT8, '')]
    for (size, clients), rows in measured.items():
        theirs = {name: row.rate for name, row in rows.items() if name.startswith('infinity')}
        ratios = []
        for ours, precision in pairs:
            rates = [rate for name, rate in theirs.items() if precision in name]
            ratios.append(f'{rows[ours].rate / max(rates):.2f}' if rates and ours in rows else '')
        if theirs:
            table.add_row(str(size), str(clients), *ratios)
    console.print(table)


def main(
    rounds: Annotated[int, typer.Option(help='Turns that each row has.')] = 5,
    threads: Annotated[int, typer.Option(help='Threads that compute, of every row; 0 is one for each core.')] = 0,
    setting: Annotated[
        list[str] | None, typer.Option(help='TEXTSxCLIENTS, such as 64x8; several may be given. Default all.')
    ] = None,
    bf16: Annotated[bool, typer.Option(help='With rows in bf16, which take long where it is emulated.')] = True,
) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    from finetuner.inference.backbones import load_encoder
    from finetuner.inference.pretrained import resolve
    from finetuner.inference.torch_engine import TorchInferenceEngine
    from training.export import export

    settings = [each for each in SETTINGS if not setting or f'{each[0]}x{each[1]}' in setting]
    count = threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    all_texts = make_texts(max(texts for _, _, texts in settings))
    encoder = load_encoder(MODEL)
    engine = TorchInferenceEngine(encoder)  # as it is: one that is loaded by its name may be made faster
    model = Path(resolve(MODEL))
    peer = SentenceTransformer(str(model), device='cpu')
    console = Console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        exported = {
            precision: load_engine(
                export(encoder, folder / precision, precision),  # type: ignore[arg-type]
                is_onnx=True,
                intra_op_num_threads=count,
            )
            for precision in ('fp32', 'int8')
        }
        artifact = folder / 'fp32'
        began = time.monotonic()
        ours = load_engine(artifact, choices={}, intra_op_num_threads=count)
        start = time.monotonic() - began
        services = {
            precision: stack.enter_context(running_service(folder / kept, count, **variables))
            for precision, kept, variables in (
                ('fp32', 'fp32', {}),
                ('bf16', 'fp32', {'FINETUNER_PRECISION': 'bf16'}),
                ('int8', 'int8', {}),
            )
        }
        service = services['fp32']
        apart = stack.enter_context(running_service(artifact, count, 'encode.yml'))
        alone = stack.enter_context(running_executor(artifact, count))
        url = f'http://127.0.0.1:{service.http}'

        def client_of(port: int) -> Embed:
            client = stack.enter_context(finetuner.EncodeClient(f'grpc://127.0.0.1:{port}', batch_size=1024))
            return lambda some: client.encode(some, show_progress=False)

        ways: dict[str, Embed] = {
            BARE[0]: bare(engine, all_texts),
            BARE[1]: bare(exported['fp32'], all_texts),
            THEIRS: lambda some: peer.encode(list(some), show_progress_bar=False),
            OURS: ours.encode_texts,
            'in process, bf16': load_engine(MODEL, precision='bf16').encode_texts,
            'in process, int8': exported['int8'].encode_texts,
            ALONE: client_of(alone.port),
            CLIENT: client_of(service.grpc),
            APART: client_of(apart.grpc),
            IN_INT8: client_of(services['int8'].grpc),
            'gRPC': over_grpc(service.grpc, 'text'),
            'HTTP': over_http(f'{url}/encode', lambda some: {'data': [{'text': text} for text in some]}),
            **{
                f'{OPENAI}, {precision}': over_http(
                    f'http://127.0.0.1:{services[precision].http}/v1/embeddings', openai_body(str(folder / kept))
                )
                for precision, kept in (('fp32', 'fp32'), ('bf16', 'fp32'), ('int8', 'int8'))
            },
        }
        servers = {f'service, {name}': (one.process, one.start) for name, one in services.items()}
        servers |= {'gateway apart': (apart.process, apart.start), 'encoder alone': (alone.process, alone.start)}
        if is_installed():
            fused = fused_model(model, folder)
            for name, source, dtype in (
                ('torch, fp32', model, 'float32'),
                ('torch, bf16', model, 'bfloat16'),
                ('optimum, fp32', fused, 'float32'),
            ):
                server = stack.enter_context(running_infinity(source, name.partition(',')[0], MODEL, count, dtype))
                ways[f'infinity, {name}'] = over_http(f'{server.url}/embeddings', openai_body(MODEL))
                servers[f'infinity, {name}'] = (server.process, server.start)
        ways = {name: embed for name, embed in ways.items() if bf16 or 'bf16' not in name}
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
            show(console, f'{size} texts in a request, {together} clients', list(rows.values()), floor, THEIRS)
        over: dict[str, float] = {}
        if (1, 1) in measured:
            bare_model = min(BARE, key=lambda name: measured[1, 1][name].latency(50))
            single = {name: ways[name] for name in (bare_model, ALONE, CLIENT, APART)}
            over = beyond(single, bare_model, all_texts[:64], rounds)
        check_goals(console, measured, floor, over)
        compare_with_infinity(console, measured)
        started = Table('', 'start, s', 'peak memory, MiB')
        started.add_row(OURS, f'{start:.1f}', '')
        for name, (process, took) in servers.items():
            started.add_row(name, f'{took:.1f}', f'{peak_memory(process):.0f}')
        console.print(started)


if __name__ == '__main__':
    typer.run(main)
