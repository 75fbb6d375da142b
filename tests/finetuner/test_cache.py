"""The cache of embeddings: with an engine that counts what it computes, and whose batches wait for the test."""

from __future__ import annotations

import asyncio
import hashlib
import threading

import numpy as np
import pytest

from finetuner.excepts import DataError, EngineError
from finetuner.inference.cache import KEEPING, EmbeddingCache, ModelCache
from finetuner.inference.engine import InferenceEngine
from finetuner.inference.meter import HIT, MISS, SHARED, Meter
from finetuner.inference.server import TEXTS_IN_WINDOW, ModelServer

DIM = 8


class Letters:
    """Texts to the numbers of their letters; 'bad' has none."""

    modality = 'text'

    def features(self, contents):
        if 'bad' in contents:
            raise DataError(f'item {contents.index("bad")} is bad')
        return [np.frombuffer(text.encode() + b'.', np.uint8) for text in contents]


class CountingEngine(InferenceEngine):
    """An embedding is a digest of the text. Batches wait while `go` is not set; 'poison' fails the batch it is in."""

    def __init__(self):
        super().__init__(Letters(), dim=DIM, batch_size=1000)
        self.computed_texts = []
        self.begun = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def run(self, inputs):
        raise NotImplementedError

    def embed(self, features):
        texts = [row.tobytes().decode()[:-1] for row in features]
        self.computed_texts += texts
        self.begun.set()
        assert self.go.wait(10)
        if 'poison' in texts:
            raise ValueError('poison')
        return np.stack([embedding_of(text) for text in texts])


def embedding_of(text):
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)[:DIM].astype(np.float32)


class Lookups(Meter):
    def __init__(self):
        self.counts = {HIT: 0, SHARED: 0, MISS: 0}

    def looked_up(self, items, outcome):
        self.counts[outcome] += items


@pytest.fixture
def engine():
    return CountingEngine()


@pytest.fixture
def meter():
    return Lookups()


@pytest.fixture
def cache():
    return EmbeddingCache(1 << 20)


@pytest.fixture
def server(engine, meter, cache):
    server = ModelServer(engine, meter=meter, cache=ModelCache(cache, 'model'))
    yield server
    engine.go.set()
    server.close()
    assert not cache._flights  # nothing is left in the air, whatever a test does


async def ask(server, texts, **options):
    return await server.embed(texts, None, lambda position: f'text {position}', **options)


def check(answer, texts):
    np.testing.assert_array_equal(answer.embeddings, np.stack([embedding_of(text) for text in texts]))
    assert answer.tokens == sum(len(text) + 1 for text in texts)


def test_what_was_computed_is_not_computed_again(server, engine, meter):
    texts = ['a', 'bb', 'a', 'ccc']
    check(asyncio.run(ask(server, texts)), texts)
    assert sorted(engine.computed_texts) == ['a', 'bb', 'ccc']
    check(asyncio.run(ask(server, [*texts, 'd'])), [*texts, 'd'])
    assert sorted(engine.computed_texts) == ['a', 'bb', 'ccc', 'd']
    assert meter.counts == {MISS: 4, SHARED: 1, HIT: 4}


def test_many_texts_in_any_order_get_their_own_embeddings(server, engine):
    chooser = np.random.default_rng(0)
    for _ in range(3):
        texts = [f'text {number}' for number in chooser.integers(0, 3000, 2 * TEXTS_IN_WINDOW + 7)]
        check(asyncio.run(ask(server, texts)), texts)
    assert len(engine.computed_texts) == len(set(engine.computed_texts))


def test_the_bytes_are_bounded_and_what_was_asked_for_last_stays(engine):
    room = 10 * (4 * DIM + KEEPING)
    cache = EmbeddingCache(room)
    server = ModelServer(engine, cache=ModelCache(cache, 'model'))
    asyncio.run(ask(server, [str(number) for number in range(10)]))
    assert cache.size == room
    asyncio.run(ask(server, ['0']))
    asyncio.run(ask(server, ['new']))
    assert cache.size == room
    engine.computed_texts.clear()
    asyncio.run(ask(server, ['0', 'new', *map(str, range(2, 10))]))
    assert not engine.computed_texts
    asyncio.run(ask(server, ['1']))  # which had to leave
    assert engine.computed_texts == ['1']
    server.close()


def test_a_cache_that_holds_nothing_is_none_the_worse(engine):
    server = ModelServer(engine, cache=ModelCache(EmbeddingCache(1), 'model'))
    texts = ['a', 'b', 'a', *map(str, range(1500))]
    check(asyncio.run(ask(server, texts)), texts)
    server.close()


def test_models_that_share_a_cache_do_not_share_embeddings(server, engine, cache):
    other = ModelServer(engine, cache=ModelCache(cache, 'another model'))
    asyncio.run(ask(server, ['a']))
    asyncio.run(ask(other, ['a']))
    assert engine.computed_texts == ['a', 'a']
    other.close()


async def begin(engine, server, texts, **options):
    """A request that is with the model."""
    engine.go.clear()
    engine.begun.clear()
    leading = asyncio.ensure_future(ask(server, texts, **options))
    assert await asyncio.to_thread(engine.begun.wait, 10)
    return leading


async def wait_for(server, count, texts, **options):
    """Requests that wait for what another computes."""
    waiting = [asyncio.ensure_future(ask(server, texts, **options)) for _ in range(count)]
    await asyncio.sleep(0.1)
    return waiting


def test_what_is_asked_for_at_the_same_time_is_computed_once(server, engine, meter):
    async def all_at_once():
        leading = await begin(engine, server, ['a', 'b'])
        waiting = await wait_for(server, 20, ['b', 'a', 'own'])
        engine.go.set()
        return await asyncio.wait_for(asyncio.gather(leading, *waiting), 10)

    first, *others = asyncio.run(all_at_once())
    check(first, ['a', 'b'])
    for answer in others:
        check(answer, ['b', 'a', 'own'])
    assert sorted(engine.computed_texts) == ['a', 'b', 'own']
    assert meter.counts == {MISS: 3, SHARED: 20 * 2 + 19, HIT: 0}


def test_a_caller_who_gives_up_takes_nobody_with_it(server, engine):
    """Neither the one who computes nor one who waits; those who are left are answered by one more computation."""

    async def give_up():
        leading = await begin(engine, server, ['a'])
        gone, *waiting = await wait_for(server, 10, ['a'])
        gone.cancel()
        leading.cancel()
        results = await asyncio.gather(leading, gone, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert not any(request.done() for request in waiting)
        engine.go.set()
        return await asyncio.wait_for(asyncio.gather(*waiting), 10)

    for answer in asyncio.run(give_up()):
        check(answer, ['a'])
    assert engine.computed_texts == ['a', 'a']


def test_a_request_that_runs_out_of_time_takes_nobody_with_it(server, engine):
    async def run_out():
        blocking = await begin(engine, server, ['first'])
        leading = asyncio.ensure_future(ask(server, ['a'], timeout=0.2))
        await asyncio.sleep(0.05)
        [patient] = await wait_for(server, 1, ['a'])
        [hasty] = await wait_for(server, 1, ['a'], timeout=0.01)
        with pytest.raises(TimeoutError, match='the deadline of the request passed'):
            await hasty
        await asyncio.sleep(0.2)
        engine.go.set()
        with pytest.raises(TimeoutError, match='the deadline of the request passed'):
            await leading
        return await asyncio.wait_for(asyncio.gather(blocking, patient), 10)

    check(asyncio.run(run_out())[1], ['a'])


def test_those_who_wait_for_what_fails_fail_too_and_others_do_not(server, engine):
    async def fail():
        leading = await begin(engine, server, ['poison', 'good'])
        poisoned = await wait_for(server, 2, ['poison'])
        healthy = await wait_for(server, 2, ['good'])
        engine.go.set()
        results = await asyncio.wait_for(asyncio.gather(leading, *poisoned, *healthy, return_exceptions=True), 10)
        return results[:3], results[3:]

    failed, answered = asyncio.run(fail())
    assert [str(error) for error in failed] == ['poison'] * 3
    for answer in answered:
        check(answer, ['good'])


def test_each_item_that_cannot_be_read_fails_under_its_own_name_and_is_tried_again(server, engine):
    failed: dict[int, str] = {}
    texts = ['a', 'bad', 'b', *['bad'] * 1000]
    answer = asyncio.run(asyncio.wait_for(ask(server, texts, failed=failed), 30))
    assert set(failed) == {1, *range(3, 1003)} and failed[700] == 'text 700 is bad'
    np.testing.assert_array_equal(answer.embeddings[[0, 2]], [embedding_of('a'), embedding_of('b')])
    assert np.isnan(answer.embeddings[1]).all()
    with pytest.raises(DataError, match='text 1 is bad'):
        asyncio.run(ask(server, ['a', 'bad']))


def test_a_model_that_is_shut_down_lets_nobody_wait(server, engine):
    async def shut_down():
        leading = await begin(engine, server, ['a'])
        waiting = await wait_for(server, 3, ['a'])
        closing = asyncio.to_thread(server._batcher.close, 0.1)
        results = asyncio.gather(leading, *waiting, return_exceptions=True)
        await closing
        return await asyncio.wait_for(results, 10)

    assert all(isinstance(result, EngineError) for result in asyncio.run(shut_down()))


def test_keys_tell_contents_apart():
    """What is at a path or an address may be another thing next time: it has none."""
    model = ModelCache(EmbeddingCache(1), 'model')
    array = np.arange(6, dtype=np.uint8)
    contents = [b'a', array, array.reshape(2, 3), array.astype(np.int8), array[:5], 'data:image/png;base64,AAAA']
    keys = model.keys(contents, 'image')
    assert len(set(keys)) == len(contents) and None not in keys
    assert model.keys([np.arange(12, dtype=np.uint8)[::2] // 2], 'image') == [keys[1]]
    assert model.keys(['picture.png', 'https://example.com/a.png', '/data:,x'], 'image') == [None] * 3
    assert model.keys(['a'], 'text') != model.keys([b'a'], 'image')
    assert len(set(model.keys(['', 'a', 'A', 'half \ud800', 'https://example.com'], 'text'))) == 5
    assert model.keys([7, np.array([None])], 'tensor') == [None, None]
