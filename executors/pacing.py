"""The requests of one stream, read as fast as there is room for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from jina.types.request.data import DataRequest

from executors.rate import Room

PAUSE = 0.05
"""Seconds after which a stream that waits for room looks again."""
AT_ONCE = 1000
"""Requests of one stream that may be under way."""


class Pacing:
    """
    :param at_once: requests that may be under way.
    :param room: for all requests that the gateway holds.
    :param admit: waits until a request may be sent on.
    """

    def __init__(self, at_once: int, room: Room, admit: Callable[[DataRequest], Awaitable[None]]):
        self._slots = asyncio.Semaphore(at_once)
        self._room, self._admit = room, admit
        self._sizes: deque[int] = deque()  # of requests under way
        self._is_over = False

    async def pace(self, requests: AsyncIterator[DataRequest]) -> AsyncIterator[DataRequest]:
        """The requests, until the stream is over: Jina reads on in a task that nobody ends."""
        async for request in requests:
            await self._slots.acquire()
            size = len(request.buffer or b'')
            while not (self._is_over or self._room.take(size)):
                await asyncio.sleep(PAUSE)
            if not self._is_over:
                self._sizes.append(size)
                await self._admit(request)
            if self._is_over:
                return
            yield request

    def answered(self) -> None:
        """One of the requests is under way no more."""
        self._room.free(self._sizes.popleft())
        self._slots.release()

    def end(self) -> None:
        """The stream is over, and nobody waits for what is still under way."""
        self._is_over = True
        self._room.free(sum(self._sizes))
        self._sizes.clear()
        self._slots.release()


def read_options(context: Any) -> tuple[bool, int]:
    """What a client of Jina wants of a stream: answers in the order of the requests, and how many at once."""
    given = dict(context.invocation_metadata())
    at_once = str(given.get('__prefetch__', ''))
    in_order = given.get('__results_in_order__') == 'true'
    return in_order, min(max(1, int(at_once)), AT_ONCE) if at_once.isdecimal() else AT_ONCE
