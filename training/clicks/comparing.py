"""Whether a model ranks held-out sessions better than the one before it, and whether it may take its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.clicks.collapse import find_collapse
from training.clicks.examples import Items, Judged
from training.clicks.ranking import distance_shifts, ranking_metrics, session_scores, session_weights
from training.clicks.significance import Comparison, compare

Embed = Callable[[Sequence[str | Path]], np.ndarray]
"""Contents in, embeddings [N, D] out."""
FEW = 10
"""Held-out sessions below which a model is refused for want of sessions rather than for what it is."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """What a model makes of sessions: embeddings by query, and by object id."""

    queries: Mapping[str, np.ndarray]
    items: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Verdict:
    """
    :param metrics: the two models by each metric, over the held-out sessions with a click, weighted by
        `session_weights`.
    :param shifts: `not_irrelevant_dist_shift` and `irrelevant_dist_shift`, which decide nothing.
    :param sessions: how many had a click.
    :param refusal: why the second model does not take the place of the first; None if it does.
    """

    metrics: dict[str, Comparison]
    shifts: dict[str, float]
    sessions: int
    refusal: str | None


def embed_sessions(judged: Judged, items: Items, embed_queries: Embed, embed_items: Embed) -> Embedded:
    """Embed every query and every item of the sessions once."""
    queries = list(dict.fromkeys(entry.query for entry in judged.sessions))
    names = list(dict.fromkeys(item for entry in judged.sessions for item in entry.items))
    return Embedded(
        dict(zip(queries, embed_queries(queries), strict=True)),
        dict(zip(names, embed_items([items[name] for name in names]), strict=True)),
    )


def judge_model(
    judged: Judged,
    before: Embedded,
    after: Embedded,
    *,
    metric: str = 'ndcg_at_10',
    max_weight: float = 10.0,
    confidence: float = 0.95,
    seed: int = 0,
) -> Verdict:
    """Compare two models by how they rank what held-out sessions showed.

    The second takes the place of the first if its mean of `metric` is higher beyond noise, and it has not collapsed.

    :raises ValueError: no session has a click.
    """
    scores = [session_scores(judged.sessions, model.queries, model.items) for model in (before, after)]
    clicked = [number for number, entry in enumerate(judged.sessions) if entry.clicks.any()]
    gains = judged.gains(max_weight)
    values = [
        ranking_metrics([model[number] for number in clicked], [gains[number] for number in clicked])
        for model in scores
    ]
    queries = [judged.sessions[number].key for number in clicked]
    weights = session_weights([gains[number] for number in clicked])
    metrics = {
        name: compare(values[0][name], values[1][name], queries, weights=weights, confidence=confidence, seed=seed)
        for name in values[0]
    }
    return Verdict(
        metrics=metrics,
        shifts=distance_shifts(judged.sessions, *scores),
        sessions=len(clicked),
        refusal=collapse_of(before, after) or _no_better(metric, metrics[metric], len(clicked)),
    )


def collapse_of(before: Embedded, after: Embedded) -> str | None:
    """One sentence if the second of two models has collapsed, by the items that the first has embedded; else None."""
    names = list(before.items)
    return find_collapse(*(np.stack([model.items[name] for name in names]) for model in (before, after)))


def _no_better(metric: str, found: Comparison, sessions: int) -> str | None:
    if found.is_better:
        return None
    few = ', and so few sessions can hardly show it if it is' if sessions < FEW else ''
    return (
        f'{metric} of {sessions} held-out sessions went from {found.before} to {found.after}, a difference of '
        f'{found.difference} ({found.significance}): that is not better beyond noise{few}'
    )
