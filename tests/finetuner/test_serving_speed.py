"""What serving costs beside the bare model, measured with a pretrained one. Ratios of medians, taken in turns."""

from __future__ import annotations

import asyncio
import random
import statistics
import time

import psutil
import pytest

from finetuner.inference import load_engine
from finetuner.inference.server import ModelServer

WORDS = ('card', 'refund', 'where', 'money', 'twice', 'arrive', 'account', 'transfer')

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope='module')
def engine():
    return load_engine('all-minilm-l6-v2')


@pytest.fixture(scope='module')
def server(engine):
    server = ModelServer(engine)
    server.warm_up()
    yield server
    server.close()


@pytest.fixture(scope='module')
def texts():
    chooser = random.Random(0)
    return [' '.join(chooser.choices(WORDS, k=chooser.randint(3, 60))) for _ in range(256)]


async def ask(server, texts):
    with server.admitted(len(texts)):
        return (await server.embed(texts, None, str)).embeddings


def measure(*actions, rounds=5):
    """The median seconds of each, taken in turns."""
    seconds = [[] for _ in actions]
    for _ in range(rounds):
        for taken, action in zip(seconds, actions, strict=True):
            began = time.perf_counter()
            action()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in seconds]


def test_many_small_requests_are_nearly_as_fast_as_a_large_one(server, texts):
    async def one_by_one():
        waiting = iter(texts)

        async def caller():
            for text in waiting:
                await ask(server, [text])

        await asyncio.gather(*(caller() for _ in range(64)))

    bulk, single = measure(lambda: asyncio.run(ask(server, texts)), lambda: asyncio.run(one_by_one()))
    assert bulk / single >= 0.8


def test_one_text_takes_no_longer_than_the_model(engine, server, texts):
    text = [texts[0]]

    async def served():
        return [await timed(ask(server, text)) for _ in range(50)]

    async def timed(call):
        began = time.perf_counter()
        await call
        return time.perf_counter() - began

    def bare():
        began = time.perf_counter()
        engine.encode_texts(text)
        return time.perf_counter() - began

    found, alone = [], []
    for _ in range(3):
        found += asyncio.run(served())
        alone += [bare() for _ in range(50)]
    assert statistics.median(found) <= statistics.median(alone) + 0.003


def test_a_server_costs_little_beside_a_plain_call(engine, server, texts):
    plain, served = measure(lambda: engine.encode_texts(texts), lambda: asyncio.run(ask(server, texts)))
    assert served <= 1.25 * plain


def test_memory_is_flat_over_a_million_texts(tiny_model):
    server = ModelServer(load_engine(tiny_model, is_onnx=False))
    process, chooser = psutil.Process(), random.Random(0)
    resident = []

    async def serve():
        for _ in range(1000):
            some = [' '.join(chooser.choices(WORDS, k=5)) for _ in range(1000)]
            await ask(server, some)
            resident.append(process.memory_info().rss)

    asyncio.run(serve())
    server.close()
    assert max(resident[500:]) - max(resident[100:200]) < 16 << 20
