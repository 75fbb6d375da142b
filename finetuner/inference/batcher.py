"""Continuous batching: one model, many callers. When the model is free, it takes of what is waiting.

There is no timer: a request that finds the model free is computed at once, and what comes meanwhile makes the next
batch. Of several requests each gets its share of a batch, so that a large one does not keep small ones waiting.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from finetuner.excepts import EngineError
from finetuner.inference.engine import InferenceEngine, Part
from finetuner.inference.meter import Batch, Meter

logger = logging.getLogger(__name__)

FAILURES = 3
"""Batches that fail one after the other when it is the model that is broken, such as on a GPU that is gone."""
ANSWERS = 8
"""Into which a batch is divided at most: each wakes whoever waits for it, and takes them time from the model."""
DEADLINE_PASSED = 'the deadline of the request passed while it waited for the model'


@dataclass(eq=False)
class Job:
    """The items of one request that wait for the model or are with it.

    :param features: of its items, as `InferenceEngine.features` gives them.
    :param deadline: by `time.monotonic()`, after which nobody waits for it any more.
    :param order: positions of the items, the longest first.
    :param begin: is called once, in the model's thread, when the model is given the first of them.
    :param taken: how many of them the model has been given.
    :param missing: how many it has not answered.
    """

    features: Sequence[np.ndarray]
    deadline: float | None
    embeddings: np.ndarray
    begin: Callable[[], None]
    order: list[int] = field(init=False)
    taken: int = 0
    missing: int = field(init=False)
    since: float = field(default_factory=time.monotonic)
    future: Future[np.ndarray] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.order = sorted(range(len(self.features)), key=lambda row: -len(self.features[row]))
        self.missing = len(self.features)

    @property
    def waiting(self) -> int:
        return len(self.order) - self.taken

    def is_wanted(self) -> bool:
        """False once its caller is gone, an item of it has failed, or its time is over."""
        if self.future.done():
            return False
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.fail(TimeoutError(DEADLINE_PASSED))
            return False
        return True

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):  # its caller has gone meanwhile
            self.future.set_exception(error)

    def put(self, rows: list[int], embeddings: np.ndarray) -> None:
        """Take the answer to some of its items; with the last of them the caller gets all."""
        self.embeddings[rows] = embeddings
        self.missing -= len(rows)
        if not self.missing:
            with suppress(InvalidStateError):
                self.future.set_result(self.embeddings)


Piece = tuple[Job, list[int]]  # some items of a job, by position


class Batcher:
    """Runs a model in a thread of its own for any number of callers.

    :param max_cost: of one batch: tokens of texts, otherwise items.
    :param meter: is told of every batch.
    """

    def __init__(self, engine: InferenceEngine, max_cost: int, meter: Meter | None = None):
        self._engine = engine
        self._meter = meter or Meter()
        self._max_cost = max_cost
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: list[Piece] = []
        self._closing = False
        self._failures = 0
        self._proven: np.ndarray | None = None
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name='model', daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items that wait for the model."""
        with self._changed:
            return sum(job.waiting for job in self._jobs)

    @property
    def is_well(self) -> bool:
        """Whether the model answers: not once its thread is gone, or it has failed several times in a row."""
        return self._thread.is_alive() and self._failures < FAILURES

    def try_again(self) -> None:
        """Have the model embed an item once more that it could embed before: if it can, it is well again. Requests that
        no model could embed might have been what failed.
        """
        if self._proven is not None:
            with suppress(EngineError):  # it is being shut down
                self.submit([self._proven])

    def submit(
        self,
        features: Sequence[np.ndarray],
        timeout: float | None = None,
        begin: Callable[[], None] = lambda: None,
    ) -> Future[np.ndarray]:
        """Have prepared items embedded: a future of float32 [N, dim]. Cancelled, its items leave the queue.

        :param timeout: seconds after which they are dropped.
        :param begin: is called once, in the model's thread, when the model is given the first of them.
        :raises EngineError: the batcher is closed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        job = Job(features, deadline, np.empty((len(features), self._engine.dim), np.float32), begin)
        if not features:
            job.future.set_result(job.embeddings)
            return job.future
        with self._changed:
            if self._closing:
                raise EngineError('the model is being shut down')
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self, patience: float = 10.0) -> None:
        """Take nothing more, and end what has been taken; what is not done after `patience` seconds fails."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(patience)
        with self._changed:
            waiting = list(self._jobs)
            self._jobs.clear()
        for job in [*waiting, *(job for job, _ in self._running)]:
            job.fail(EngineError('the model was shut down'))

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (pieces := self._take()):
                        if self._closing:
                            return
                        self._changed.wait()
                    self._running = pieces
                self._run(pieces)
                self._running = []
        except BaseException as error:
            logger.exception('The thread of the model has died: another one takes its place')
            self._failures += 1
            dead, self._running = self._running, []
            for job, _ in dead:
                job.fail(EngineError(f'the thread of the model has died: {type(error).__name__}: {error}'))
            self._start()  # for those that wait

    def _take(self) -> list[Piece]:
        """The next batch. First each job gets an equal share of it, or one item, and then the first in line what is
        left."""
        self._jobs = deque(job for job in self._jobs if job.waiting and job.is_wanted())
        room = self._max_cost
        share = max(1, room // max(1, len(self._jobs)))
        taken: dict[Job, list[int]] = {}
        for limit in (share, self._max_cost):
            for job in self._jobs:
                is_first = not job.taken
                rows, cost = self._next(job, min(limit, room), room if taken else None)
                if rows:
                    if is_first:
                        self._meter.waited(time.monotonic() - job.since)
                        job.begin()
                    taken.setdefault(job, []).extend(rows)
                    room -= cost
        # the first in line moves to the end, so that of more jobs than fit into a batch each has its turn
        self._jobs.rotate(-1)
        return list(taken.items())

    def _next(self, job: Job, limit: int, room: int | None) -> tuple[list[int], int]:
        """Items of a job within a limit, and their cost.

        :param room: for one item that is beyond the limit; None if it may be of any size.
        """
        rows: list[int] = []
        spent = 0
        while job.waiting:
            row = job.order[job.taken]
            cost = self._cost(job.features[row])
            if spent + cost > limit and (rows or (room is not None and cost > room)):
                break
            rows.append(row)
            spent += cost
            job.taken += 1
        return rows, spent

    def _cost(self, features: np.ndarray) -> int:
        return len(features) if self._engine.modality == 'text' else 1

    def _run(self, pieces: list[Piece]) -> None:
        """Embed a batch. What the engine computes one after the other is answered one after the other."""
        items = [(job, row) for job, rows in pieces for row in rows]
        answered: set[int] = set()
        computed = 0
        failure: Exception | None = None
        try:
            parts = self._engine.embed_parts([job.features[row] for job, row in items], self._engine.batch_size)
            for part in _joined(parts, math.ceil(len(items) / ANSWERS)):
                _answer([items[place] for place in part.rows], part.embeddings)
                computed += part.computed
                answered.update(part.rows.tolist())
        except Exception as error:
            failure = error
        if answered:
            self._count([items[place] for place in sorted(answered)], computed)
        if failure:
            self._try_again_apart([item for place, item in enumerate(items) if place not in answered], failure)

    def _count(self, items: Sequence[tuple[Job, int]], computed: int) -> None:
        features = [job.features[row] for job, row in items]
        self._failures, self._proven = 0, features[0]
        used = sum(map(self._cost, features))
        self._meter.batch(Batch(len(items), len(_by_job(items)), used, computed, self._max_cost))

    def _try_again_apart(self, items: Sequence[tuple[Job, int]], failure: Exception) -> None:
        """Embed each job's share of what has failed alone: the others are none the worse."""
        jobs = _by_job(items)
        if len(jobs) == 1:
            self._failures += 1
            items[0][0].fail(failure)
            return
        logger.warning('A batch of %d requests failed: each is tried alone (%s)', len(jobs), failure)
        for job, places in jobs.items():
            if job.is_wanted():
                self._run([(job, [items[place][1] for place in places])])


def _joined(parts: Iterable[Part], count: int) -> Iterator[Part]:
    """Parts of at least so many items, except for the last."""
    ready: list[Part] = []
    for part in parts:
        ready.append(part)
        if sum(len(part.rows) for part in ready) >= count:
            yield _join(ready)
            ready = []
    if ready:
        yield _join(ready)


def _join(parts: Sequence[Part]) -> Part:
    rows, embeddings = np.concatenate([part.rows for part in parts]), np.vstack([part.embeddings for part in parts])
    return Part(rows, embeddings, sum(part.computed for part in parts))


def _by_job(items: Sequence[tuple[Job, int]]) -> dict[Job, list[int]]:
    """Where each job's items stand among those of several."""
    places: dict[Job, list[int]] = {}
    for place, (job, _) in enumerate(items):
        places.setdefault(job, []).append(place)
    return places


def _answer(items: Sequence[tuple[Job, int]], embeddings: np.ndarray) -> None:
    """Give jobs the embeddings of items of theirs, [len(items), dim]."""
    for job, places in _by_job(items).items():
        job.put([items[place][1] for place in places], embeddings[places])
