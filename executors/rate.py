"""How many requests each caller may send, and how large."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

DEFAULT_RATE = 1000.0
"""Requests per second of one caller: more than one gateway can answer, so that nobody alone keeps it busy for long."""
REQUESTS_AT_ONCE = 8
"""Requests of the largest size that are held in memory at the same time; smaller ones are as many as fit into that."""
MAX_STREAMS = 100
"""Streams of one caller, such as logs of runs, that may be open at the same time."""
TOO_MANY_AT_ONCE = 'too many large requests at once: try again in a second'
TOKENS_OF_ADDRESS = 10
"""Tokens of one address that may all send as many requests as they may."""
BURST = 2.0
"""Seconds of requests that may come at once."""
MAX_CALLERS = 20_000
MAX_BODY = 64 << 20
"""Bytes of a request, default of `FINETUNER_MAX_BODY_BYTES`: it is read before anyone has asked for a token."""


class Room:
    """Bytes of requests that are held in memory at the same time.

    :param size: as many as there may be; but one request alone may always be.
    """

    def __init__(self, size: int):
        self.size, self.held = size, 0

    def take(self, size: int) -> bool:
        """Take room for a request, if there is any."""
        if self.held and self.held + size > self.size:
            return False
        self.held += size
        return True

    def free(self, size: int) -> None:
        self.held -= size


class Buckets:
    """Token buckets: one for each caller; the longest unused ones are forgotten, which are full again by then.

    :param rate: requests per second; 0 does not limit.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic):
        self.rate = rate
        self.capacity = max(1.0, rate * BURST)
        self._clock = clock
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # (requests left, when that was)

    @classmethod
    def from_environment(cls) -> Buckets:
        """
        :raises ValueError: FINETUNER_RATE_LIMIT is no number from 0 on.
        """
        given = os.environ.get('FINETUNER_RATE_LIMIT') or str(DEFAULT_RATE)
        try:
            rate = float(given)
        except ValueError:
            rate = math.nan
        if not 0 <= rate < math.inf:
            raise ValueError(f'FINETUNER_RATE_LIMIT is {given!r}: give requests per second, or 0 for no limit')
        return cls(rate)

    def take(self, address: str, token: str | None = None) -> float:
        """Take one request from the caller's bucket. 0, or if it is empty, the seconds until there is one again.

        :param address: where the request comes from. Nobody has looked at the token yet, and a new one is soon
            invented: an address has no more requests than `TOKENS_OF_ADDRESS` tokens have.
        :param token: is kept hashed.
        """
        if not self.rate:
            return 0.0
        if token is None:
            return self._take(f'address {address}', 1.0)
        return self._take(f'address {address}', 1 / TOKENS_OF_ADDRESS) or self._take(token, 1.0)

    def _take(self, caller: str, cost: float) -> float:
        key, now = _key(caller), self._clock()
        left, since = self._buckets.pop(key, (self.capacity, now))
        left = min(self.capacity, left + (now - since) * self.rate)
        wait = 0.0 if left >= cost else (cost - left) / self.rate
        self._buckets[key] = (left if wait else left - cost, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return wait

    def sentence(self, wait: float) -> str:
        return f'more than {self.rate:g} requests per second: try again in {max(1, math.ceil(wait))} s'


class Streams:
    """The streams that each caller has open."""

    def __init__(self) -> None:
        self._open: Counter[bytes] = Counter()

    def open(self, caller: str) -> bool:
        """Count one more, if there may be."""
        key = _key(caller)
        if self._open[key] >= MAX_STREAMS:
            return False
        self._open[key] += 1
        return True

    def close(self, caller: str) -> None:
        key = _key(caller)
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]


def _key(caller: str) -> bytes:
    return hashlib.sha256(caller.encode(errors='replace')).digest()


def max_body() -> int:
    """
    :raises ValueError: FINETUNER_MAX_BODY_BYTES is no number from 1 on.
    """
    given = os.environ.get('FINETUNER_MAX_BODY_BYTES') or str(MAX_BODY)
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f'FINETUNER_MAX_BODY_BYTES is {given!r}: give a number of bytes')
    return int(given)
