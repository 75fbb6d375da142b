"""Which of several ways is the faster one here: each is tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

_ROUNDS = 2


def compare(ways: Sequence[Callable[[], Any]]) -> tuple[list[Any], list[float]]:
    """What each returns, and the seconds that it takes in the best of some rounds, in which they take turns.

    The first round warms up.
    """
    results: list[Any] = [None] * len(ways)
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(1 + _ROUNDS):
        for number, way in enumerate(ways):
            began = time.perf_counter()
            results[number] = way()
            seconds[number].append(time.perf_counter() - began)
    return results, [min(taken[1:]) for taken in seconds]
