"""Which of several ways is the faster one here: each is tried."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

_LEAST, _MOST = 2, 12  # rounds
_PAUSE = 0.005  # seconds in which the threads of a library go to sleep: awake, they hold up those of another one
_SECONDS = 0.6  # in which as many rounds are made as there is time for: a moment in which the machine is slow misleads


def compare(ways: Sequence[Callable[[], Any]]) -> tuple[list[Any], list[float]]:
    """What each returns, and the seconds that it takes in the best of some rounds, in which they take turns.

    The first round warms up.
    """
    results = [way() for way in ways]
    best = [math.inf] * len(ways)
    end = time.perf_counter() + _SECONDS
    for done in range(_MOST):
        if done >= _LEAST and time.perf_counter() > end:
            break
        for number, way in enumerate(ways):
            time.sleep(_PAUSE)
            began = time.perf_counter()
            results[number] = way()
            best[number] = min(best[number], time.perf_counter() - began)
    return results, best
