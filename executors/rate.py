"""How many requests each caller may send, and how large."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable

DEFAULT_RATE = 1000.0
"""Requests per second of one caller: more than one gateway can answer, so that nobody alone keeps it busy for long."""
BURST = 2.0
"""Seconds of requests that may come at once."""
MAX_CALLERS = 20_000
MAX_BODY = 64 << 20
"""Bytes of a request, default of `FINETUNER_MAX_BODY_BYTES`: it is read before anyone has asked for a token."""


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

    def take(self, caller: str) -> float:
        """Take one request from the caller's bucket. 0, or if it is empty, the seconds until there is one again.

        :param caller: a token or an address; it is kept hashed.
        """
        if not self.rate:
            return 0.0
        key, now = hashlib.sha256(caller.encode(errors='replace')).digest(), self._clock()
        left, since = self._buckets.pop(key, (self.capacity, now))
        left = min(self.capacity, left + (now - since) * self.rate)
        wait = 0.0 if left >= 1 else (1 - left) / self.rate
        self._buckets[key] = (left if wait else left - 1, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        return wait

    def sentence(self, wait: float) -> str:
        return f'more than {self.rate:g} requests per second: try again in {max(1, math.ceil(wait))} s'


def max_body() -> int:
    """
    :raises ValueError: FINETUNER_MAX_BODY_BYTES is no number from 1 on.
    """
    given = os.environ.get('FINETUNER_MAX_BODY_BYTES') or str(MAX_BODY)
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f'FINETUNER_MAX_BODY_BYTES is {given!r}: give a number of bytes')
    return int(given)
