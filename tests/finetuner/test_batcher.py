"""Continuous batching, with an engine whose every batch waits until the test lets it go."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from finetuner.excepts import EngineError
from finetuner.inference.batcher import Batcher, Job
from finetuner.inference.engine import InferenceEngine
from finetuner.inference.meter import Meter


class Tokens:
    """Texts that are their own features."""

    modality = 'text'

    def collate(self, rows):
        return {'rows': rows}


class SlowEngine(InferenceEngine):
    """An embedding is the sum of an item's numbers. A batch begins when the test says so."""

    def __init__(self):
        super().__init__(Tokens(), dim=1, batch_size=1000)
        self.batches = []
        self.go = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def run(self, inputs):
        raise NotImplementedError

    def embed(self, features):
        self.batches.append([row.tolist() for row in features])
        self.begun.release()
        assert self.go.acquire(timeout=10)
        if any(13 in row for row in features):
            raise ValueError('the number 13')
        if any(666 in row for row in features):
            raise SystemExit('the thread dies')
        return np.array([[row.sum()] for row in features], np.float32)


def items(*lengths, value=1):
    return [np.full(length, value) for length in lengths]


@pytest.fixture
def engine():
    return SlowEngine()


@pytest.fixture
def batcher(engine):
    batcher = Batcher(engine, max_cost=8)
    yield batcher
    for _ in range(100):
        engine.go.release()
    batcher.close()


@pytest.fixture
def busy(engine, batcher):
    """The model is computing something, so that what is submitted waits."""
    first = batcher.submit(items(8, value=0))
    assert engine.begun.acquire(timeout=10)
    return first


def finish(engine, count=100):
    for _ in range(count):
        engine.go.release()


def test_a_request_is_computed_at_once(engine, batcher):
    future = batcher.submit(items(2, 3))
    assert engine.begun.acquire(timeout=10)
    finish(engine, 1)
    assert future.result(10).tolist() == [[2], [3]]
    assert batcher.submit([]).result(10).shape == (0, 1)


def test_what_waits_is_computed_together_and_answers_go_to_their_owners(engine, batcher, busy):
    futures = [batcher.submit(items(length, value=number)) for number, length in enumerate((1, 2, 3), 1)]
    finish(engine)
    assert [future.result(10).tolist() for future in futures] == [[[1]], [[4]], [[9]]]
    assert engine.batches[1:] == [[[3, 3, 3], [2, 2], [1]]]  # one batch, the longest first


def test_the_order_of_a_request_is_kept(engine, batcher, busy):
    lengths = [1, 5, 2, 4, 3, 8, 7, 1, 1]
    future = batcher.submit(items(*lengths))
    finish(engine)
    assert future.result(10)[:, 0].tolist() == lengths
    assert all(sum(map(len, batch)) <= 8 for batch in engine.batches)


def test_a_small_request_does_not_wait_for_a_huge_one(engine, batcher, busy):
    huge = batcher.submit(items(*[1] * 400))
    small = batcher.submit(items(1, 1, value=2))
    finish(engine, 2)
    assert small.result(10).tolist() == [[2], [2]]
    assert not huge.done()
    finish(engine)
    assert len(huge.result(10)) == 400


def test_of_more_requests_than_fit_into_a_batch_each_has_its_turn(engine, batcher, busy):
    futures = [batcher.submit(items(*[8] * 3, value=number)) for number in range(1, 5)]
    finish(engine, 5)
    for _ in range(4):
        assert engine.begun.acquire(timeout=10)
    assert {batch[0][0] for batch in engine.batches[1:5]} == {1, 2, 3, 4}
    finish(engine)
    assert [future.result(10)[:, 0].tolist() for future in futures] == [[8 * n] * 3 for n in range(1, 5)]


def test_an_item_that_is_larger_than_a_batch_is_computed_alone(engine, batcher, busy):
    future, other = batcher.submit(items(20)), batcher.submit(items(1))
    finish(engine)
    assert future.result(10).tolist() == [[20]] and other.result(10).tolist() == [[1]]


def test_a_request_that_fails_fails_alone(engine, batcher, busy):
    bad = batcher.submit(items(2, value=13))
    good = [batcher.submit(items(1, value=number)) for number in (1, 2)]
    finish(engine)
    assert [future.result(10).tolist() for future in good] == [[[1]], [[2]]]
    with pytest.raises(ValueError, match='the number 13'):
        bad.result(10)
    assert batcher.submit(items(3)).result(10).tolist() == [[3]]


def test_what_is_computed_first_is_answered_first(engine, batcher, busy):
    engine.batch_size = 1
    short, long = batcher.submit(items(1)), batcher.submit(items(3))
    finish(engine, 2)
    assert long.result(10).tolist() == [[3]]
    assert not short.done()
    finish(engine)
    assert short.result(10).tolist() == [[1]]


def test_who_waits_for_many_is_not_woken_for_each(engine, batcher, busy, monkeypatch):
    engine.batch_size = 1
    answers = []
    monkeypatch.setattr(Job, 'put', lambda job, rows, embeddings: answers.append(len(rows)))
    batcher._max_cost = 100
    batcher.submit(items(*[1] * 100))
    finish(engine, 101)
    deadline = time.monotonic() + 10
    while sum(answers) < 100 + 1:  # and the one before it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(answers) - 1 == 8


def test_what_is_answered_is_not_computed_again_for_what_fails(engine, batcher, busy):
    engine.batch_size = 1
    bad, good = batcher.submit(items(3, 2, value=13)), batcher.submit(items(4, value=1))
    finish(engine)
    assert good.result(10).tolist() == [[4]]
    with pytest.raises(ValueError, match='the number 13'):
        bad.result(10)
    assert engine.batches.count([[1, 1, 1, 1]]) == 1


def test_what_nobody_waits_for_any_more_is_not_tried_again(engine, batcher, busy):
    bad = batcher.submit(items(2, value=13))
    gone, late, kept = (
        batcher.submit(items(1, value=5)),
        batcher.submit(items(1, value=6), 0.2),
        batcher.submit(items(1)),
    )
    finish(engine, 1)
    assert engine.begun.acquire(timeout=10)
    assert gone.cancel()
    time.sleep(0.3)
    finish(engine)
    assert kept.result(10).tolist() == [[1]]
    with pytest.raises(ValueError, match='the number 13'):
        bad.result(10)
    with pytest.raises(TimeoutError, match='the deadline of the request passed'):
        late.result(10)
    assert [[5]] not in engine.batches and [[6]] not in engine.batches


def test_what_is_answered_before_something_fails_is_counted(engine):
    engine.batch_size = 1
    counts = Counts()
    batcher = Batcher(engine, 100, counts)
    with batcher._changed:
        bad, good = batcher.submit(items(3, value=13)), batcher.submit(items(4, 2, value=1))
    finish(engine)
    assert good.result(10).tolist() == [[4], [2]]
    with pytest.raises(ValueError, match='the number 13'):
        bad.result(10)
    batcher.close()
    assert sum(batch.items for batch in counts.batches) == 2
    assert sum(batch.used for batch in counts.batches) == sum(batch.computed for batch in counts.batches) == 6


def test_what_nobody_waits_for_is_not_computed(engine, batcher, busy):
    gone = batcher.submit(items(1, 1, value=5))
    late = batcher.submit(items(1, value=6), timeout=0.05)
    kept = batcher.submit(items(1, value=7))
    assert batcher.waiting == 4
    assert gone.cancel()
    time.sleep(0.06)
    finish(engine)
    assert kept.result(10).tolist() == [[7]]
    assert engine.batches[1:] == [[[7]]]
    with pytest.raises(TimeoutError, match='the deadline of the request passed'):
        late.result(10)


def test_a_close_lets_what_was_taken_end(engine, batcher, busy):
    waiting = batcher.submit(items(1))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closing:
        time.sleep(0.01)
    with pytest.raises(EngineError, match='being shut down'):
        batcher.submit(items(1))
    finish(engine)
    closing.join(5)
    assert busy.result(0) is not None and waiting.result(0).tolist() == [[1]]


def test_a_close_does_not_wait_for_ever(engine, batcher, busy):
    waiting = batcher.submit(items(1))
    batcher.close(patience=0.1)
    for future in (busy, waiting):
        with pytest.raises(EngineError, match='was shut down'):
            future.result(0)


def test_a_thread_that_dies_fails_its_requests_at_once_and_is_replaced(engine, batcher, busy):
    seconds = []
    for _ in range(3):  # a machine that halts does not halt each time
        doomed = batcher.submit(items(8, value=666))
        waiting = batcher.submit(items(8, value=1))
        began = time.monotonic()
        finish(engine)
        with pytest.raises(EngineError, match='the thread of the model has died: SystemExit: the thread dies'):
            doomed.result(10)
        assert waiting.result(10).tolist() == [[8]]
        seconds.append(time.monotonic() - began)
        assert batcher.is_well
    assert min(seconds) < 1


def test_a_model_that_fails_again_and_again_is_not_well(engine, batcher):
    finish(engine)
    for _ in range(3):
        assert batcher.is_well
        with pytest.raises(ValueError, match='the number 13'):
            batcher.submit(items(1, value=13)).result(10)
    assert not batcher.is_well
    batcher.submit(items(1)).result(10)
    assert batcher.is_well


def test_a_model_is_well_again_if_what_it_could_embed_it_can(engine, batcher):
    finish(engine)
    batcher.submit(items(1)).result(10)
    for _ in range(3):
        with pytest.raises(ValueError, match='the number 13'):
            batcher.submit(items(1, value=13)).result(10)
    assert not batcher.is_well
    batcher.try_again()
    deadline = time.monotonic() + 1
    while not batcher.is_well:
        assert time.monotonic() < deadline
        time.sleep(0.01)


class PaddingEngine(SlowEngine):
    """Pads every batch of 32 to its longest item, as onnxruntime needs it."""

    def __init__(self):
        super().__init__()
        self.batch_size = 32

    def embed(self, features):
        return np.zeros((len(features), 1), np.float32)


class Counts(Meter):
    def __init__(self):
        self.batches = []

    def batch(self, batch):
        self.batches.append(batch)


def test_little_is_padded():
    """Of texts as people write them, from 64 callers at once."""
    lengths = np.random.default_rng(0).lognormal(np.log(27), 0.8, 4096).clip(4, 256).astype(int)
    counts, engine = Counts(), PaddingEngine()
    batcher = Batcher(engine, 4096, counts)
    with batcher._changed:  # so that all wait
        futures = [batcher.submit(items(*lengths[start::64])) for start in range(64)]
    for future in futures:
        future.result(10)
    batcher.close()
    used, computed = (sum(getattr(batch, name) for batch in counts.batches) for name in ('used', 'computed'))
    assert used == lengths.sum()
    assert computed / used <= 1.15
