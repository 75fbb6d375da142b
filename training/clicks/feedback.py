"""What a session says about each of its results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from registry.click_records import ClickEvent, ClickSession


@dataclass(frozen=True, eq=False)
class Feedback:
    """The results of one session, each item once, where it was shown first.

    :param query: as it was typed.
    :param items: object ids [N], in the order in which they were shown.
    :param positions: where each was shown, from 0 on, int64 [N].
    :param clicks: how much each was wanted: the weight of its heaviest event, 0 without one; float64 [N].
    :param ranks: the scores that the search gave them, float64 [N], NaN where it did not tell.
    :param is_irrelevant: nothing here was of use; then `clicks` are all 0.
    """

    session_id: str
    query: str
    items: list[str]
    positions: np.ndarray
    clicks: np.ndarray
    ranks: np.ndarray
    is_irrelevant: bool

    @property
    def key(self) -> str:
        """Equal for queries that differ in case and spaces only."""
        return query_key(self.query)


def query_key(query: str) -> str:
    return ' '.join(query.casefold().split())


def read_feedback(
    sessions: Iterable[ClickSession],
    event_weights: Mapping[str, float] | None = None,
    clickless_is_irrelevant: bool = False,
) -> list[Feedback]:
    """The feedback of every session that has a query and results.

    Events of items that were not shown say nothing about the ranking, and are left out. The clicks of a session that is
    marked irrelevant do not count.

    :param event_weights: by type of event; a type that is not named counts 0. None: all count 1. The weight is
        multiplied by the number `importance` of the event's meta, if there is one.
    :param clickless_is_irrelevant: take a session without clicks as marked; else it says nothing.
    """
    found = []
    for session in sessions:
        if not session.search_query.strip() or not session.search_results:
            continue
        wanted: dict[str, float] = {}
        for event in session.events:
            wanted[event.object_id] = max(wanted.get(event.object_id, 0.0), _weight(event, event_weights))
        shown = {result.object_id: place for place, result in reversed(list(enumerate(session.search_results)))}
        positions = np.array(sorted(shown.values()), np.int64)
        results = [session.search_results[place] for place in positions]
        clicks = np.array([wanted.get(result.object_id, 0.0) for result in results])
        is_irrelevant = session.is_irrelevant or (clickless_is_irrelevant and not clicks.any())
        found.append(
            Feedback(
                session_id=session.session_id,
                query=session.search_query,
                items=[result.object_id for result in results],
                positions=positions,
                clicks=np.zeros_like(clicks) if is_irrelevant else clicks,
                ranks=np.array([math.nan if result.rank is None else result.rank for result in results]),
                is_irrelevant=is_irrelevant,
            )
        )
    return found


def _weight(event: ClickEvent, weights: Mapping[str, float] | None) -> float:
    weight = 1.0 if weights is None else weights.get(event.event_type, 0.0)
    importance = (event.meta or {}).get('importance')
    if isinstance(importance, int | float) and not isinstance(importance, bool) and importance >= 0:
        return weight * importance
    return weight
