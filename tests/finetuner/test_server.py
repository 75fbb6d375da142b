"""A model behind an event loop, with a real text model."""

from __future__ import annotations

import asyncio
import random
import threading

import numpy as np
import pytest

from finetuner.excepts import BusyError, DataError
from finetuner.inference import load_engine
from finetuner.inference.admission import Admission
from finetuner.inference.server import ModelServer

WORDS = ['card', 'lost', 'where', 'my', 'is', 'the', 'money', 'refund']


@pytest.fixture(scope='module')
def engine(tiny_model):
    return load_engine(tiny_model, is_onnx=False)


@pytest.fixture
def server(engine):
    server = ModelServer(engine, admission=Admission(max_items=5000))
    yield server
    server.close()


@pytest.fixture(scope='module')
def texts():
    chooser = random.Random(0)
    return [' '.join(chooser.choices(WORDS, k=chooser.randint(1, 30))) for _ in range(3000)]


def name(position):
    return f'text {position}'


async def ask(server, texts, **options):
    with server.admitted(len(texts)):
        return (await server.embed(texts, None, name, **options)).embeddings


def test_many_requests_at_once_get_their_own_answers(server, engine, texts):
    expected = engine.encode_texts(texts)
    starts = [*range(0, 500, 5)]

    async def all_at_once():
        small = [ask(server, texts[start : start + 5]) for start in starts]
        return await asyncio.gather(ask(server, texts), *small)

    whole, *answers = asyncio.run(all_at_once())
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    for start, found in zip(starts, answers, strict=True):
        np.testing.assert_allclose(found, expected[start : start + 5], atol=1e-5)
    assert server.items == 0


def noted(do, threads):
    """A function that notes the thread in which it is called."""

    def call(*given):
        threads.append(threading.current_thread())
        return do(*given)

    return call


def test_nothing_that_takes_long_is_done_on_the_event_loop(server, engine, texts, monkeypatch):
    used = []
    for name in ('check', 'features', 'embed'):
        monkeypatch.setattr(engine, name, noted(getattr(engine, name), used))
    assert len(asyncio.run(ask(server, texts))) == len(texts)
    asyncio.run(ask(server, texts[:2]))
    asyncio.run(ask(server, ['a long text ' * 1000]))
    assert len(used) > 9 and threading.main_thread() not in used


def test_a_request_that_finds_no_room_is_refused(server, texts):
    async def too_many():
        with server.admitted(4000):
            with pytest.raises(BusyError, match='4000 documents are under way and no more than 5000 may be: try again'):
                await ask(server, texts[:1001])
            return await ask(server, texts[:1000])

    assert len(asyncio.run(too_many())) == 1000
    assert server.items == 0


def test_a_request_that_is_given_up_leaves_nothing_behind(server, texts):
    async def give_up():
        asking = asyncio.ensure_future(ask(server, texts))
        await asyncio.sleep(0.02)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert server.items == 0
        return await asyncio.wait_for(ask(server, texts[:3]), 10)

    assert len(asyncio.run(give_up())) == 3


def test_what_cannot_be_read_is_named_or_noted(server, texts):
    given = [*texts[:1500], 'half \ud800', *texts[1500:1510], 7]
    with pytest.raises(DataError, match='text 1500 is not valid Unicode'):
        asyncio.run(ask(server, given))
    failed: dict[int, str] = {}
    answers = asyncio.run(ask(server, given, failed=failed))
    assert set(failed) == {1500, 1511} and failed[1511] == 'text 1511 is not a text but int'
    assert np.isnan(answers[[1500, 1511]]).all() and np.isfinite(np.delete(answers, [1500, 1511], 0)).all()


def test_texts_without_padding_get_the_same_embeddings(engine, texts):
    assert engine.packs
    features = engine.preprocessor.features(texts[:40])
    np.testing.assert_allclose(engine.embed(features), engine.run(engine.preprocessor.collate(features)), atol=1e-5)
