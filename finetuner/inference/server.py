"""A model behind an event loop: admits requests, prepares their items in threads, and has them embedded in batches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetuner.excepts import BusyError, DataError, EngineError, ParameterError
from finetuner.inference.batcher import Batcher
from finetuner.inference.engine import InferenceEngine
from finetuner.inference.meter import ANSWERED, FAILED, GIVEN_UP, REFUSED, Meter

if TYPE_CHECKING:
    from finetuner.data.links import Links

MAX_ITEMS = 100_000
"""Items of all requests that are under way at once."""
MAX_TOKENS = 4096
"""Tokens of texts in one batch."""
PREPARERS = 4
"""Requests whose items are prepared at the same time; tokenizers and decoders leave the interpreter to others."""
AHEAD = 2
"""Windows of one request that are with the model or wait for it; the next one is prepared when the first is done."""
LONG = 512
"""Tokens of the longest text that a model is warmed up with."""
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


class ModelServer:
    """Serves one model to any number of requests at once.

    :param max_items: that may be under way; a request that finds no room is refused. One that is alone may be larger.
    :param meter: is told of every request and batch.
    """

    def __init__(self, engine: InferenceEngine, max_items: int = MAX_ITEMS, meter: Meter | None = None):
        self.engine = engine
        self._max_items = max_items
        self._meter = meter or Meter()
        is_text = engine.modality == 'text'
        self._window = TEXTS_IN_WINDOW if is_text else OTHERS_IN_WINDOW
        self._batcher = Batcher(engine, MAX_TOKENS if is_text else engine.batch_size, meter)
        self._pool = ThreadPoolExecutor(PREPARERS, thread_name_prefix='prepare')
        self._lock = threading.Lock()
        self._items = 0

    @property
    def items(self) -> int:
        """Items of all requests that are under way."""
        return self._items

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
            raise EngineError('the model fails again and again: the log says why')

    @contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """Within, `count` items of a request count as under way, and the model is not closed.

        :raises BusyError: there is no room for them.
        """
        with self._lock:
            if self._items and self._items + count > self._max_items:
                self._meter.request(count, 0.0, REFUSED)
                raise BusyError(
                    f'{self._items} documents are under way and no more than {self._max_items} may be: try again in a '
                    f'moment, or with fewer than {count}'
                )
            self._items += count
        began, outcome = time.monotonic(), FAILED
        try:
            yield
            outcome = ANSWERED
        except asyncio.CancelledError:
            outcome = GIVEN_UP
            raise
        finally:
            with self._lock:
                self._items -= count
            self._meter.request(count, time.monotonic() - began, outcome)

    async def embed(
        self,
        contents: Sequence[Any],
        links: Links | None,
        name: Callable[[int], str],
        timeout: float | None = None,
        failed: dict[int, str] | None = None,
    ) -> Embedded:
        """Embed items that were admitted. Cancelled, they leave the queue.

        :param links: opens paths and URLs.
        :param name: what an item is called in an error, by its position.
        :param timeout: seconds after which nobody waits for them.
        :param failed: takes what is wrong with items that cannot be read, by position; their embeddings are NaN. None
            has the first of them fail the request.
        :raises DataError: an item is not what the model takes, or cannot be read.
        :raises TimeoutError: they had to wait for too long.
        :raises EngineError: the model cannot answer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        loop = asyncio.get_running_loop()
        embeddings = np.full((len(contents), self.engine.dim), np.nan, np.float32)
        pending: deque[tuple[list[int], asyncio.Future[np.ndarray]]] = deque()
        tokens = 0

        async def collect() -> None:
            rows, answer = pending[0]
            embeddings[rows] = await answer
            pending.popleft()

        try:
            for start in range(0, len(contents), self._window):
                window = range(start, min(start + self._window, len(contents)))
                features = await loop.run_in_executor(self._pool, self._prepare, contents, window, links, name, failed)
                left = None if deadline is None else deadline - time.monotonic()
                answer = asyncio.wrap_future(self._batcher.submit(list(features.values()), left))
                pending.append((list(features), answer))
                if self.engine.modality == 'text':
                    tokens += sum(map(len, features.values()))
                if len(pending) == AHEAD:
                    await collect()
            while pending:
                await collect()
        finally:
            for _, answer in pending:
                answer.cancel()
        return Embedded(embeddings, tokens)

    def _prepare(
        self,
        contents: Sequence[Any],
        window: range,
        links: Links | None,
        name: Callable[[int], str],
        failed: dict[int, str] | None,
    ) -> dict[int, np.ndarray]:
        """The features of items, by position: together, or if one of them is faulty, each by itself."""

        def prepare(positions: range) -> dict[int, np.ndarray]:
            items = contents[positions.start : positions.stop]
            self.engine.check(items, lambda row: name(positions.start + row))
            return dict(zip(positions, self.engine.features(items, positions.start, links, name), strict=True))

        try:
            return prepare(window)
        except DataError:
            if failed is None:
                raise
        features: dict[int, np.ndarray] = {}
        for position in window:
            try:
                features |= prepare(range(position, position + 1))
            except DataError as error:
                failed[position] = str(error)
        return features

    def close(self, patience: float = 0.0) -> None:
        """End what is under way. What is not done after `patience` seconds and those of one batch fails.

        :param patience: of a thread that runs no request: in that of an event loop, none of them would end meanwhile.
        """
        deadline = time.monotonic() + patience
        while self._items and time.monotonic() < deadline:
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
