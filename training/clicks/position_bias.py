"""How likely a user looks at a position: what is shown first is clicked more often, whether it is better or not."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array

from training.clicks.feedback import Feedback

logger = logging.getLogger(__name__)

ENOUGH = 30
"""Queries and items that must have met at two positions or more."""
PRIOR = 1.0
"""How much the power law counts between two neighbouring positions: as much as this many clicks on either."""


def power_law(positions: int, eta: float = 1.0) -> np.ndarray:
    """The propensities 1 / (position from 1)^eta, float64 [positions]."""
    return np.arange(1, positions + 1, dtype=np.float64) ** -eta


def estimate_propensities(feedback: Sequence[Feedback], eta: float = 1.0) -> np.ndarray:
    """The propensities by comparing each item with itself: where it was shown at two positions for the same query, it
    is as attractive at both, and what differs are the positions (intervention harvesting: Agarwal et al. 2019,
    https://arxiv.org/abs/1812.05161). The ratios of all pairs of positions are fitted by weighted least squares of
    their logarithms. They never rise with the position.

    Where too few items were shown at several positions, the log says so, and they are those of `power_law`.

    :param feedback: sessions that are marked irrelevant are left out.
    :param eta: of the power law to which the estimate leans where there is little to see.
    :returns: float64, from the first position on, which has 1.
    """
    used = [entry for entry in feedback if not entry.is_irrelevant]
    length = 1 + max((int(entry.positions.max()) for entry in feedback), default=0)
    prior = power_law(length, eta)
    if not used:
        return prior
    pairs: dict[tuple[str, str], int] = {}
    meetings = [pairs.setdefault((entry.key, item), len(pairs)) for entry in used for item in entry.items]
    places = np.array(meetings, np.int64), np.concatenate([entry.positions for entry in used])
    clicked = np.concatenate([entry.clicks > 0 for entry in used]).astype(np.float64)
    shape = len(pairs), length
    views = coo_array((np.ones(len(clicked)), places), shape=shape).tocsr()
    clicks = coo_array((clicked, places), shape=shape).tocsr()
    met = (views > 0).astype(np.float64)
    if (moved := int((met.sum(1) > 1).sum())) < ENOUGH:
        logger.warning(
            'Position bias cannot be estimated: %d items were shown at different positions for the same query, and %d '
            'are needed. It is taken to fall as 1 / position^%g',
            moved,
            ENOUGH,
            eta,
        )
        return prior
    # entry [k, l] is about position k, of the items that were shown at position l, too
    rates = clicks.multiply(views.power(-1)).T @ met
    numbers, seen, items = ((counts.T @ met).toarray() for counts in (clicks, views, met))
    half = 0.5 * items / np.maximum(seen, 1)  # as if half a click more had been seen, so that none is no infinity
    logarithms = np.log(rates.toarray() + np.maximum(half, 1e-12))
    first, second = np.triu_indices(length, 1)
    differences = logarithms[first, second] - logarithms[second, first]
    weights = 1 / (1 / (numbers[first, second] + 0.5) + 1 / (numbers[second, first] + 0.5))
    weights = np.where(items[first, second] > 0, weights, 0)
    neighbours = np.arange(length - 1)
    first, second = np.concatenate([first, neighbours]), np.concatenate([second, neighbours + 1])
    differences = np.concatenate([differences, -np.diff(np.log(prior))])
    weights = np.concatenate([weights, np.full(length - 1, PRIOR / 2)])
    propensities = np.exp(_fit(first, second, differences, weights, length))
    return np.minimum.accumulate(propensities / propensities[0])


def _fit(first: np.ndarray, second: np.ndarray, differences: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """x with x[0] = 0 and x[first] − x[second] as near to the differences as can be, float64 [size]."""
    matrix, values = np.zeros((size, size)), np.zeros(size)
    for row, column, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
        np.add.at(matrix, (row, column), sign * weights)
    np.add.at(values, first, weights * differences)
    np.add.at(values, second, -weights * differences)
    return np.concatenate([[0.0], np.linalg.solve(matrix[1:, 1:], values[1:])])
