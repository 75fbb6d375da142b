"""A client that has a service embed any number of texts."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from finetuner.client.session import find_service
from finetuner.client.transport import TIMEOUT
from finetuner.excepts import BusyError, DataError, EngineError, FinetunerServerError, UnavailableError

if TYPE_CHECKING:
    import numpy as np

    from finetuner.client.answers import Answer

Result = TypeVar('Result')
logger = logging.getLogger(__name__)

ENDPOINT = '/encode_texts'
PATIENCE = 30.0
"""Seconds for which a request that finds the service busy, or starting again, is sent again."""
MAX_PAUSE = 4.0
"""Seconds between two tries, at most."""
CHARACTERS = 4 << 20
"""Of the texts in one request: a gateway takes 64 MiB."""
AT_ONCE = 64
"""Requests of all calls that are on their way at once, and calls that are awaited; further ones wait for them."""


class EncodeClient:
    """Has a service embed texts. The connection is kept, and several requests are on their way at once.

    Threads and event loops may share it.

    :param host: the service, `grpc://name:port` or `http://name:port`; default that of the last login, `FINETUNER_HOST`
        or `grpc://localhost:51000`.
    :param token: where the service demands one; default that of the last login, or the one in the environment or in the
        credentials file, if there is any.
    :param batch_size: texts in one request.
    :param prefetch: requests of one call that are on their way at once.
    :param dtype: of the numbers on their way: float16 is half as much, and rounds to three digits.
    :param timeout: seconds that one request may take.
    :raises ValueError: the host is no address, or a number is not positive.
    """

    def __init__(
        self,
        host: str | None = None,
        token: str | None = None,
        *,
        batch_size: int = 256,
        prefetch: int = 4,
        dtype: Literal['float32', 'float16'] = 'float32',
        timeout: float = TIMEOUT,
    ):
        from finetuner.client.reaching import open_transport

        for name, value in (('batch_size', batch_size), ('prefetch', prefetch), ('timeout', timeout)):
            if value <= 0:
                raise ValueError(f'{name} is {value!r}: it must be positive')
        if dtype not in ('float32', 'float16'):
            raise ValueError(f'dtype is {dtype!r}: choose float32 or float16')
        self.host, self._token = find_service(host, token)
        self._batch_size, self._prefetch, self._dtype, self._timeout = batch_size, prefetch, dtype, timeout
        self._transport = open_transport(self.host)
        self._is_shared = self.host.startswith('grpc')  # the connection: over HTTP each thread has one
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix='encode')
        self._awaited = ThreadPoolExecutor(AT_ONCE, thread_name_prefix='await')
        self._is_closed = False
        self._told, self._lock = -math.inf, threading.Lock()

    def __enter__(self) -> EncodeClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Send nothing more; the connection stays open for others of this process. What waits to be sent fails."""
        self._is_closed = True
        for pool in (self._awaited, self._pool):
            pool.shutdown(wait=False)

    def encode(
        self,
        texts: Sequence[str],
        *,
        truncate_dim: int | None = None,
        normalize: bool = False,
        model: str | None = None,
        show_progress: bool = True,
    ) -> np.ndarray:
        """Embed texts. An empty text is a text.

        :param truncate_dim: keep so many of the first dimensions.
        :param normalize: scale the embeddings, after that, to L2 norm 1.
        :param model: the id of the artifact that is to answer; an error if the service serves another.
        :param show_progress: show a bar, where somebody watches.
        :return: float32 [N, D], in the order of `texts`; [0, 0] of none.
        :raises DataError: one of them is not a text; nothing was sent then.
        :raises RuntimeError: the client is closed.
        :raises ArtifactNotFoundError: the service has another model, or none.
        :raises BusyError: the service was busy for half a minute.
        :raises UnavailableError: the service could not be reached for half a minute.
        :raises FinetunerServerError: the service has failed, or was given another model meanwhile.
        """
        return self._encode(texts, self._parameters(truncate_dim, normalize, model), show_progress, threading.Event())

    async def aencode(
        self,
        texts: Sequence[str],
        *,
        truncate_dim: int | None = None,
        normalize: bool = False,
        model: str | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """The same, to be awaited. Cancelled, it sends no further request."""
        stop = threading.Event()
        parameters = self._parameters(truncate_dim, normalize, model)
        self._check_open()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._awaited, self._encode, texts, parameters, show_progress, stop)
        except asyncio.CancelledError:
            stop.set()
            raise

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError('this EncodeClient is closed: make another one')

    def _parameters(self, truncate_dim: int | None, normalize: bool, model: str | None) -> dict[str, Any]:
        given = {'token': self._token, 'truncate_dim': truncate_dim, 'model': model}
        wanted = {name: value for name, value in given.items() if value is not None}
        return {**wanted, 'normalize': normalize, 'dtype': self._dtype}

    def _encode(
        self, texts: Sequence[str], parameters: dict[str, Any], show_progress: bool, stop: threading.Event
    ) -> np.ndarray:
        import numpy as np

        self._check_open()
        _check(texts)
        embeddings = np.empty((0, 0), np.float32)
        artifact: str | None = None
        under_way: deque[tuple[int, Future[tuple[np.ndarray, str | None]]]] = deque()
        batches = _split(texts, self._batch_size)
        with ExitStack() as stack:
            advance = _show(len(texts), stack) if show_progress else None
            try:
                while True:
                    for start, batch in itertools.islice(batches, self._prefetch - len(under_way)):
                        # what is all of a call is sent by its own thread, for which no other need wake up
                        is_all = len(batch) == len(texts) and self._is_shared
                        submit = _at_once if is_all else self._pool.submit
                        under_way.append((start, submit(self._ask, batch, parameters, stop)))
                    if not under_way:
                        return embeddings
                    start, answer = under_way[0]
                    rows, answered_by = answer.result()
                    under_way.popleft()
                    if not start:
                        artifact = answered_by
                        embeddings = np.empty((len(texts), rows.shape[1]), np.float32)
                    if answered_by != artifact or rows.shape[1] != embeddings.shape[1]:
                        raise FinetunerServerError(f'another model was promoted at {self.host} meanwhile: encode again')
                    embeddings[start : start + len(rows)] = rows
                    if advance:
                        advance(len(rows))
            finally:
                if under_way:
                    stop.set()
                    for _, answer in under_way:
                        answer.cancel()

    def _ask(
        self, texts: Sequence[str], parameters: dict[str, Any], stop: threading.Event
    ) -> tuple[np.ndarray, str | None]:
        """The embeddings of one request, [N, D], in the type in which they came, and the artifact that answered."""
        with self._slots:
            answer = self._answer_to(texts, parameters, stop)
        return _read(answer, len(texts), self.host)

    def _answer_to(self, texts: Sequence[str], parameters: dict[str, Any], stop: threading.Event) -> Answer:

        from finetuner.client import wire_pb2 as wire
        from finetuner.client.answers import read_answers

        document = wire.Document()
        document.data['text'].text = json.dumps(list(texts), ensure_ascii=False)
        docs = wire.DocumentList(docs=[document]).SerializeToString()
        end = time.monotonic() + PATIENCE
        for attempt in itertools.count(1):
            if stop.is_set():
                raise CancelledError
            self._check_open()
            try:
                [answer] = read_answers(self._transport.call(ENDPOINT, parameters, docs, self._timeout))
                return answer
            except (BusyError, EngineError, UnavailableError) as error:
                pause = min(0.25 * 2**attempt, MAX_PAUSE) * random.uniform(0.5, 1)
                if time.monotonic() + pause > end:
                    raise
                if isinstance(error, UnavailableError):
                    self._tell()
                stop.wait(pause)
        raise AssertionError('unreachable')

    def _tell(self) -> None:
        """Say that the service is away, once for all that is under way: perhaps nobody has started it."""
        with self._lock:
            now = time.monotonic()
            if now - self._told > PATIENCE:
                self._told = now
                logger.warning('%s cannot be reached yet: trying for %g s', self.host, PATIENCE)


def _read(answer: Answer, count: int, host: str) -> tuple[np.ndarray, str | None]:
    """The array of an answer to so many texts, and the artifact that answered."""
    import numpy as np

    shape = int(answer.tags['count']), int(answer.tags['dim'])
    if shape[0] != count:
        raise FinetunerServerError(f'{host} answered {count} texts with {shape[0]} embeddings')
    rows = np.frombuffer(answer.blob or b'', np.dtype(answer.tags['dtype']).newbyteorder('<')).reshape(shape)
    return rows, answer.tags.get('model')


def _at_once(call: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Like the method `submit` of a pool, but by the thread that asks."""
    future: Future[Result] = Future()
    future.set_result(call(*arguments))
    return future


def _check(texts: Sequence[str]) -> None:
    if isinstance(texts, str | bytes):
        raise DataError('expected a list of texts, got a single one: put it into a list')
    if not isinstance(texts, Sequence) and not hasattr(texts, '__getitem__'):
        raise DataError(f'expected a list of texts, got {type(texts).__name__}')
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f'text {position} is not a text but {type(text).__name__}')
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DataError(f'text {position} is not valid Unicode: it has half a character') from None


def _split(texts: Sequence[str], size: int) -> Iterator[tuple[int, Sequence[str]]]:
    """The position of the first text, and the texts, of one request after the other."""
    start = length = 0
    for position, text in enumerate(texts):
        if position > start and (position - start == size or length + len(text) > CHARACTERS):
            yield start, texts[start:position]
            start, length = position, 0
        length += len(text)
    if len(texts):
        yield start, texts[start:]


def _show(total: int, stack: ExitStack) -> Any:
    """Show a progress bar as long as the stack is open; returned is what moves it."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    from finetuner.console import make_progress

    progress = stack.enter_context(make_progress(MofNCompleteColumn(), TimeRemainingColumn()))
    task = progress.add_task('Encoding', total=total)
    return lambda count: progress.advance(task, count)
