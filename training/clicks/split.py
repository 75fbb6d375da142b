"""Sessions to learn from, and sessions to measure on: no query is in both, and no item where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from finetuner.excepts import DataError
from training.clicks.feedback import Feedback

TOLERANCE = 0.5
"""How far the share of what is held out may lie from what is asked for, as a part of it, so that items are parted."""


@dataclass(frozen=True, eq=False)
class Split:
    """Two parts of the sessions, in their order.

    :param shared_items: the share of the held-out items that the training sessions show, too.
    """

    train: list[Feedback]
    test: list[Feedback]
    shared_items: float


def split_sessions(feedback: Sequence[Feedback], share: float = 0.2, seed: int = 0) -> Split:
    """Hold out about `share` of the sessions.

    All sessions of a query are on one side. Where the queries fall apart into groups that show no item in common, and
    these can be dealt out to give about the share, no item is on both sides either; else the split says how many are.

    :raises DataError: there are fewer than two different queries.
    """
    names: dict[str, int] = {}
    query = np.array([names.setdefault(entry.key, len(names)) for entry in feedback], np.int64)
    if len(names) < 2:
        found = {0: 'there are no sessions', 1: 'the only session is of one query'}.get(
            len(feedback), f'all {len(feedback)} sessions are of one query'
        )
        raise DataError(f'{found}: those of at least 2 different queries are needed to split')
    random = np.random.default_rng((seed, 3))
    wanted = share * len(feedback)
    held_out = _deal(_groups(feedback, query, len(names))[query], wanted, random)
    if not abs(held_out.sum() - wanted) <= TOLERANCE * wanted:
        held_out = _deal(query, wanted, random)
    train = [entry for entry, out in zip(feedback, held_out, strict=True) if not out]
    test = [entry for entry, out in zip(feedback, held_out, strict=True) if out]
    seen = {item for entry in train for item in entry.items}
    shown = {item for entry in test for item in entry.items}
    return Split(train, test, len(shown & seen) / max(len(shown), 1))


def _groups(feedback: Sequence[Feedback], query: np.ndarray, queries: int) -> np.ndarray:
    """The group of every query, int [queries]: queries that show an item in common, or through others, are of one."""
    items: dict[str, int] = {}
    nodes = [queries + items.setdefault(item, len(items)) for entry in feedback for item in entry.items]
    rows = np.repeat(query, [len(entry.items) for entry in feedback])
    size = queries + len(items)
    graph = coo_array((np.ones(len(rows), bool), (rows, np.array(nodes, np.int64))), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][:queries])


def _deal(group: np.ndarray, wanted: float, random: np.random.Generator) -> np.ndarray:
    """Which sessions are held out, bool [N]: whole groups in random order, as far as they bring the sum nearer to what
    is wanted, at least one and not all of them."""
    names, sizes = np.unique(group, return_counts=True)
    chosen: list[int] = []
    total = 0
    for number in random.permutation(len(names)):
        if len(chosen) < len(names) - 1 and abs(total + sizes[number] - wanted) < abs(total - wanted):
            chosen.append(int(names[number]))
            total += int(sizes[number])
    if not chosen and len(names) > 1:
        chosen = [int(names[int(sizes.argmin())])]
    return np.isin(group, chosen)
