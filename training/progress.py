"""What a run tells the world while it works."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    :param stage: what is being done, such as 'Training'.
    :param step: done steps of the stage, out of `steps`.
    :param epoch: from 1, out of `epochs`; 0 outside of training.
    :param loss: mean of the epoch so far.
    :param samples_per_second: rate of the stage so far.
    :param eta: seconds until the stage ends.
    """

    stage: str
    step: int
    steps: int
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    samples_per_second: float | None = None
    eta: float | None = None


class Reporter:
    """Passes progress on, at most every `interval` seconds, and keeps the seconds that each stage took."""

    def __init__(self, report: Callable[[Progress], None] | None = None, interval: float = 0.5):
        self.seconds: dict[str, float] = {}
        self._report = report
        self._interval = interval
        self._last = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done within."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        logger.info('%s took %.1f seconds', name, self.seconds[name])

    def due(self) -> bool:
        """True if progress would be passed on now: what costs time to find out need not be found out otherwise."""
        return self._report is not None and time.perf_counter() - self._last >= self._interval

    def __call__(self, progress: Progress) -> None:
        if self._report is not None and (self.due() or progress.step == progress.steps):
            self._last = time.perf_counter()
            self._report(progress)
