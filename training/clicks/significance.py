"""Is one model better than another, or is it noise: bootstrap intervals, and a test of paired differences.

Sessions of one query are alike, so what is drawn again, or changes its sign, is a query with all its sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

AT_ONCE = 100
"""Samples that are drawn together."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and where it lies with the confidence that was asked for."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f'{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]'


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same sessions.

    :param difference: of the mean after less that before.
    :param p_value: how often as large a difference, of either sign, comes about if the two do not differ.
    :param confidence: of the intervals.
    """

    before: Interval
    after: Interval
    difference: Interval
    p_value: float
    confidence: float

    @property
    def is_better(self) -> bool:
        """Whether the second beats the first beyond noise."""
        return self.difference.low > 0 and self.p_value < 1 - self.confidence

    @property
    def significance(self) -> str:
        """The p-value for a sentence; no p-value is 0."""
        return f'p = {self.p_value:.3f}' if self.p_value >= 0.001 else 'p < 0.001'


def bootstrap_interval(
    values: np.ndarray,
    groups: Sequence[object] | None = None,
    *,
    weights: np.ndarray | None = None,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The weighted mean of the values and its percentile bootstrap interval.

    :param values: one of each session, float [N].
    :param groups: the query of each session; None if each stands for itself.
    :param weights: how much each session counts, above 0, float [N]; None if all count the same.
    :raises ValueError: there are no values.
    """
    sums, sizes = _by_group(np.asarray(values, np.float64), groups, weights)
    random = np.random.default_rng((seed, 5))
    means = []
    for start in range(0, samples, AT_ONCE):
        drawn = random.integers(len(sums), size=(min(AT_ONCE, samples - start), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high))


def compare(
    before: np.ndarray,
    after: np.ndarray,
    groups: Sequence[object] | None = None,
    *,
    weights: np.ndarray | None = None,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare a metric of two models on the same sessions, by a paired bootstrap and a test by changing signs.

    :param before: one value of each session, float [N]; `after` the same.
    :param groups: the query of each session; None if each stands for itself.
    :param weights: how much each session counts, above 0, float [N]; None if all count the same.
    :raises ValueError: there are no sessions, or not the same number.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape:
        raise ValueError(f'{len(before)} sessions before and {len(after)} after: the same ones are needed')

    def interval(values: np.ndarray) -> Interval:
        return bootstrap_interval(values, groups, weights=weights, confidence=confidence, samples=samples, seed=seed)

    sums, sizes = _by_group(after - before, groups, weights)
    random = np.random.default_rng((seed, 6))
    as_large, found = 0, abs(sums.sum())
    for start in range(0, samples, AT_ONCE):
        signs = random.choice((-1.0, 1.0), size=(min(AT_ONCE, samples - start), len(sums)))
        as_large += int((np.abs(signs @ sums) >= found - 1e-12).sum())
    p_value = (1 + as_large) / (1 + samples)
    return Comparison(interval(before), interval(after), interval(after - before), p_value, confidence)


def _by_group(
    values: np.ndarray, groups: Sequence[object] | None, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The weighted sum of each group's values, and the sum of its weights."""
    if not len(values):
        raise ValueError('There are no sessions to measure on')
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if groups is None:
        return weights * values, weights
    numbers: dict[object, int] = {}
    number = np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)
    return np.bincount(number, weights * values), np.bincount(number, weights)
