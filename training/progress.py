"""What a run tells the world while it works."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

logger = logging.getLogger(__name__)

REPORT_SECONDS = 0.5
LOG_SECONDS = 15


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    :param stage: what is being done, such as 'Training'.
    :param step: done steps of the stage (of the epoch, in training), out of `steps`.
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

    @property
    def title(self) -> str:
        return f'{self.stage} [{self.epoch}/{self.epochs}]' if self.epochs else self.stage

    @property
    def facts(self) -> str:
        facts = []
        if self.eta is not None:
            facts.append(f'{timedelta(seconds=round(self.eta))} left')
        if self.loss is not None:
            facts.append(f'loss: {self.loss:.4f}')
        if self.samples_per_second is not None:
            facts.append(f'{self.samples_per_second:.0f} samples/s')
        return ' • '.join(facts)

    def __str__(self) -> str:
        return f'{self.title} {self.step}/{self.steps} {self.facts}'


class Reporter:
    """Passes progress on, at most twice a second, logs it now and then, and keeps the seconds that each stage took,
    without those of the stages within it."""

    def __init__(self, report: Callable[[Progress], None] | None = None):
        self.seconds: dict[str, float] = {}
        self._report = report or (lambda progress: None)
        self._reported = self._logged = time.perf_counter()
        self._within = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done within, and log it. The seconds of a stage in another count for the inner one alone, those
        of several of one name together."""
        start, outer = time.perf_counter(), self._within
        self._within = 0.0
        yield
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._within
        logger.info('%s took %.1f seconds', name, seconds - self._within)
        self._within = outer + seconds

    def due(self) -> bool:
        """True if progress would be passed on now: what costs time to find out need not be found out otherwise."""
        return time.perf_counter() - self._reported >= REPORT_SECONDS

    def __call__(self, progress: Progress) -> None:
        last = progress.step == progress.steps
        if last or self.due():
            self._reported = time.perf_counter()
            self._report(progress)
        if time.perf_counter() - self._logged >= LOG_SECONDS or (last and progress.epochs):
            self._logged = time.perf_counter()
            logger.info('%s', progress)
