"""A model behind an event loop: admits requests, prepares their items in threads, and has them embedded in batches."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from finetuner.excepts import DataError, EngineError, ParameterError
from finetuner.inference.admission import Admission
from finetuner.inference.batcher import DEADLINE_PASSED, Batcher
from finetuner.inference.cache import Entry, Flight, ModelCache, Share
from finetuner.inference.engine import InferenceEngine
from finetuner.inference.meter import HIT, MISS, SHARED, Meter
from finetuner.inference.watch import NOBODY, PREPROCESS, QUEUE, RUN, SHARE, Watch

if TYPE_CHECKING:
    from finetuner.data.links import Links

MAX_TOKENS = 4096
"""Tokens of texts in one batch."""
PREPARERS = 4
"""Requests whose items are prepared at the same time; tokenizers and decoders leave the interpreter to others."""
AHEAD = 2
"""Windows of one request that are with the model or wait for it; the next one is prepared when the first is done."""
LONG = 512
"""Tokens of the longest text that a model is warmed up with."""
QUICK_CHARACTERS = 2048
"""Of a single text that is tokenized on the event loop, which takes less than a millisecond."""
BATCH = 5.0
"""Seconds that the batch which is being computed at the end may take."""
TEXTS_IN_WINDOW, OTHERS_IN_WINDOW = 1024, 32


@dataclass(frozen=True)
class Embedded:
    """The answer to a request.

    :param embeddings: float32 [N, dim].
    :param tokens: of its texts, special ones included; 0 of other contents.
    """

    embeddings: np.ndarray
    tokens: int


@dataclass
class _Asked:
    """A request: what :meth:`ModelServer.embed` was given, and the answer as far as it is known."""

    contents: Sequence[Any]
    links: Links | None
    name: Callable[[int], str]
    deadline: float | None
    failed: dict[int, str] | None
    embeddings: np.ndarray
    watch: Watch
    keys: list[bytes | None] = field(default_factory=list)
    tokens: int = 0

    @property
    def left(self) -> float | None:
        """Seconds until nobody waits for it any more."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def put(self, found: dict[int, Entry]) -> None:
        """Take items that others have computed, by position."""
        if found:
            rows = np.frombuffer(b''.join(entry.embedding for entry in found.values()), np.float32)
            self.embeddings[list(found)] = rows.reshape(len(found), -1)
            self.tokens += sum(entry.tokens for entry in found.values())


@dataclass
class _Part:
    """Items of a request that are prepared together.

    :param rows: their positions.
    :param flight: what they were claimed with.
    :param features: by position, once they are prepared.
    :param answer: once they wait for the model.
    :param prepared: since when they wait for it, by `time.monotonic()`; 0 before.
    :param given: when it was given the first of them; 0 before.
    """

    rows: Sequence[int]
    flight: Flight
    features: dict[int, np.ndarray] = field(default_factory=dict)
    answer: asyncio.Future[np.ndarray] | None = None
    prepared: float = 0.0
    given: float = 0.0

    def begin(self) -> None:
        self.given = time.monotonic()

    def tell(self, watch: Watch) -> None:
        """Tell how long it waited for the model, and was with it, up to now."""
        if not self.features:
            return
        now = time.monotonic()
        watch.stage(QUEUE, self.prepared, self.given or now, len(self.features))
        if self.given:
            watch.stage(RUN, self.given, now, len(self.features))


class ModelServer:
    """Serves one model to any number of requests at once.

    :param meter: is told of every batch, and of what was looked up in the cache.
    :param cache: what embeddings are kept in; default none are.
    :param admission: lets requests in; default one of its own.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        meter: Meter | None = None,
        cache: ModelCache | None = None,
        admission: Admission | None = None,
    ):
        self.engine = engine
        self._meter = meter or Meter()
        self._cache = cache
        is_text = engine.modality == 'text'
        self._window = TEXTS_IN_WINDOW if is_text else OTHERS_IN_WINDOW
        self._batcher = Batcher(engine, MAX_TOKENS if is_text else engine.batch_size, meter)
        self._pool = ThreadPoolExecutor(PREPARERS, thread_name_prefix='prepare')
        self._admission = admission or Admission()

    @property
    def items(self) -> int:
        """Items of all requests that are under way."""
        return self._admission.items

    @property
    def waiting(self) -> int:
        """Those of them that are prepared and wait for the model."""
        return self._batcher.waiting

    def warm_up(self) -> None:
        """Compute the least batch and a large one, before anyone waits for the first. Of texts and images: of other
        contents nobody knows how large they are.
        """
        samples: list[Any] = []
        if self.engine.modality == 'text':
            samples = ['a', ' '.join(['a'] * min(self.engine.max_length or LONG, LONG))]
        elif self.engine.modality == 'image':
            samples = [np.zeros((32, 32, 3), np.uint8)] * 2
        for features in self.engine.features(samples, 0, None, lambda position: f'sample {position}'):
            count = MAX_TOKENS // LONG if features.ndim == 1 else self.engine.batch_size
            self._batcher.submit([features]).result()
            self._batcher.submit([features] * count).result()

    def check(self) -> None:
        """:raises EngineError: the model does not answer any more."""
        if not self._batcher.is_well:
            self._batcher.try_again()
            raise EngineError('the model fails again and again: the log says why')

    def admitted(self, count: int) -> AbstractContextManager[None]:
        """Within, `count` items of a request count as under way, and the model is not closed.

        :raises BusyError: there is no room for them.
        """
        return self._admission.admitted(count)

    async def embed(
        self,
        contents: Sequence[Any],
        links: Links | None,
        name: Callable[[int], str],
        timeout: float | None = None,
        failed: dict[int, str] | None = None,
        watch: Watch = NOBODY,
    ) -> Embedded:
        """Embed items that were admitted. Cancelled, they leave the queue.

        :param links: opens paths and URLs.
        :param name: what an item is called in an error, by its position.
        :param timeout: seconds after which nobody waits for them.
        :param failed: takes what is wrong with items that cannot be read, by position; their embeddings are NaN. None
            has the first of them fail the request.
        :param watch: is told of the stages.
        :raises DataError: an item is not what the model takes, or cannot be read.
        :raises TimeoutError: they had to wait for too long.
        :raises EngineError: the model cannot answer.
        """
        asked = _Asked(
            contents,
            links,
            name,
            None if timeout is None else time.monotonic() + timeout,
            failed,
            np.full((len(contents), self.engine.dim), np.nan, np.float32),
            watch,
        )
        everything = range(len(contents))
        if self._cache is None:
            await self._compute(asked, (_Part(rows, Flight()) for rows in self._windows(everything)))
        else:
            await self._look_up(asked, self._cache)
        return Embedded(asked.embeddings, asked.tokens)

    async def _look_up(self, asked: _Asked, cache: ModelCache) -> None:
        """Take what is kept or being computed for others, and compute the rest."""
        loop = asyncio.get_running_loop()
        rows: Sequence[int] = range(len(asked.contents))
        if self._is_quick(asked, rows):
            asked.keys = cache.keys(asked.contents, self.engine.modality)
        else:
            asked.keys = await loop.run_in_executor(self._pool, cache.keys, asked.contents, self.engine.modality)
        while rows:
            shared: dict[int, Share] = {}
            await self._compute(asked, self._claimed(asked, cache, rows, shared))
            # only now: whoever waits has nothing that others could be waiting for
            await self._wait(asked, shared)
            given = {row: entry for row, share in shared.items() if (entry := share.entry)}
            asked.put(given)
            self._meter.looked_up(len(given), SHARED)
            lacking = {row: share.flight for row, share in shared.items() if row not in given}
            # what failed for another is tried alone, to fail under its own name, and not one after the other
            failed = [row for row, flight in lacking.items() if not flight.was_left]
            self._meter.looked_up(len(failed), MISS)
            await self._compute(asked, (_Part(window, Flight()) for window in self._windows(failed)))
            rows = [row for row, flight in lacking.items() if flight.was_left]

    def _claimed(
        self, asked: _Asked, cache: ModelCache, rows: Sequence[int], shared: dict[int, Share]
    ) -> Iterator[_Part]:
        """What is to be computed of some items, claimed part by part: others need not wait for all of a large request.

        :param shared: takes those that are being computed, by position.
        """
        for window in self._windows(rows):
            claim = cache.entries.claim(window, asked.keys)
            # at once, so that whatever goes wrong, what was claimed has somebody who lands it
            yield _Part(claim.missed, claim.flight)
            asked.put(claim.hits)
            shared |= claim.shared
            self._meter.looked_up(len(claim.hits), HIT)
            self._meter.looked_up(len(claim.flight.keys), MISS)

    async def _wait(self, asked: _Asked, shared: dict[int, Share]) -> None:
        """
        :raises TimeoutError: what others compute has not all come in time.
        """
        began = time.monotonic()
        flights = {share.flight for share in shared.values()}
        late = [asyncio.wrap_future(flight.landed) for flight in flights if not flight.landed.done()]
        if not late:
            return
        try:
            # unlike other ways to wait, this one cancels nothing that it waits for
            _, missing = await asyncio.wait(late, timeout=asked.left)
        finally:
            asked.watch.stage(SHARE, began, time.monotonic(), len(shared))
        if missing:
            raise TimeoutError(DEADLINE_PASSED)

    async def _compute(self, asked: _Asked, parts: Iterable[_Part]) -> None:
        """Have items prepared and embedded, part by part. Whether that goes well or not, all their flights land."""
        loop = asyncio.get_running_loop()
        pending: deque[_Part] = deque()
        was_left = False

        async def collect() -> None:
            part = pending[0]
            assert part.answer is not None
            asked.embeddings[list(part.features)] = await part.answer
            pending.popleft()
            part.tell(asked.watch)
            self._land(asked, part)

        try:
            for part in parts:
                pending.append(part)
                if part.rows:
                    began = time.monotonic()
                    try:
                        if self._is_quick(asked, part.rows):
                            part.features = self._prepare(asked, part.rows)
                        else:
                            part.features = await loop.run_in_executor(self._pool, self._prepare, asked, part.rows)
                    finally:
                        part.prepared = time.monotonic()
                        asked.watch.stage(PREPROCESS, began, part.prepared, len(part.rows))
                features = list(part.features.values())
                part.answer = asyncio.wrap_future(self._batcher.submit(features, asked.left, part.begin))
                if self.engine.modality == 'text':
                    asked.tokens += sum(map(len, features))
                if len(pending) == AHEAD:
                    await collect()
            while pending:
                await collect()
        except (asyncio.CancelledError, TimeoutError):
            was_left = True
            raise
        finally:
            for part in pending:
                part.tell(asked.watch)
                if part.answer is not None:
                    part.answer.cancel()
                if self._cache is not None:
                    self._cache.entries.land(part.flight, {}, was_left)

    def _land(self, asked: _Asked, part: _Part) -> None:
        """Let others have what was computed."""
        if self._cache is None:
            return
        is_text = self.engine.modality == 'text'
        found = {
            key: Entry(asked.embeddings[row].tobytes(), len(features) if is_text else 0)
            for row, features in part.features.items()
            if (key := asked.keys[row]) is not None
        }
        self._cache.entries.land(part.flight, found)

    def _windows(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        """As many items as are prepared at once, one after the other."""
        for start in range(0, len(rows), self._window):
            yield rows[start : start + self._window]

    def _is_quick(self, asked: _Asked, rows: Sequence[int]) -> bool:
        """Whether items are prepared in less time than a thread takes to get to work. Several texts are not: tokenizers
        share their threads, and would have them wait for those of a large request.
        """
        return (
            self.engine.modality == 'text'
            and len(rows) == 1
            and isinstance(text := asked.contents[rows[0]], str)
            and len(text) <= QUICK_CHARACTERS
        )

    def _prepare(self, asked: _Asked, rows: Sequence[int]) -> dict[int, np.ndarray]:
        """The features of items, by position: together, or if one of them is faulty, each by itself."""

        def prepare(rows: Sequence[int]) -> dict[int, np.ndarray]:
            items = [asked.contents[row] for row in rows]

            def name(item: int) -> str:
                return asked.name(rows[item])

            self.engine.check(items, name)
            return dict(zip(rows, self.engine.features(items, 0, asked.links, name), strict=True))

        try:
            return prepare(rows)
        except DataError:
            if asked.failed is None:
                raise
        features: dict[int, np.ndarray] = {}
        for row in rows:
            try:
                features |= prepare([row])
            except DataError as error:
                asked.failed[row] = str(error)
        return features

    def close(self, patience: float = 0.0) -> None:
        """End what is under way. What is not done after `patience` seconds and those of one batch fails.

        :param patience: of a thread that runs no request: in that of an event loop, none of them would end meanwhile.
        """
        deadline = time.monotonic() + patience
        while self.items and time.monotonic() < deadline:
            time.sleep(0.02)
        self._batcher.close(max(BATCH, deadline - time.monotonic()))
        self._pool.shutdown(wait=False, cancel_futures=True)


def check_dim(dim: int, truncate_dim: int | None) -> None:
    """:raises ParameterError: embeddings of `dim` dimensions cannot be cut to so many."""
    if truncate_dim is not None and truncate_dim > dim:
        raise ParameterError(f"'truncate_dim' is {truncate_dim}: the model has {dim} dimensions")


def shape_embeddings(embeddings: np.ndarray, truncate_dim: int | None = None, normalize: bool = False) -> np.ndarray:
    """The first dimensions of embeddings [N, D], and these scaled to L2 norm 1; a vector of zeros stays."""
    embeddings = embeddings[:, :truncate_dim]
    if normalize:
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        embeddings = embeddings / np.where(norms == 0, 1, norms)
    return embeddings
