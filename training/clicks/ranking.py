"""How well a model ranks what held-out sessions were shown: nDCG, reciprocal rank, recall, session by session."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from training.clicks.feedback import Feedback


def ndcg(scores: np.ndarray, gains: np.ndarray, k: int = 10) -> float:
    """Σ gain / log2(1 + place) over the first k, as a part of what the best order gives.

    Items of equal scores share their places: each has the mean of their discounts, so that a model that tells nothing
    apart gains nothing from the order in which it was asked. 0 where no gain is above 0.

    :param scores: of the model, [N].
    :param gains: from 0 on, [N].
    """
    discounts = np.where(np.arange(len(scores)) < k, 1 / np.log2(np.arange(len(scores)) + 2), 0)
    best = float(np.sort(gains)[::-1] @ discounts)
    if best <= 0:
        return 0.0
    order = np.argsort(-scores, kind='stable')
    _, ties = np.unique(-scores[order], return_inverse=True)
    shared = np.bincount(ties, discounts) / np.bincount(ties)
    return float(gains[order] @ shared[ties]) / best


def reciprocal_rank(scores: np.ndarray, gains: np.ndarray) -> float:
    """1 / the place of the first item with a gain; its mean over all orders of items with equal scores."""
    wanted = gains > 0
    if not wanted.any():
        return 0.0
    top = scores[wanted].max()
    ahead, tied = int((scores > top).sum()), int((scores == top).sum())
    relevant = int((wanted & (scores == top)).sum())
    orders = math.comb(tied, relevant)
    # the first of them is at place j of the tie in so many of all orders
    chances = [math.comb(tied - j, relevant - 1) / orders for j in range(1, tied - relevant + 2)]
    return sum(chance / (ahead + j) for j, chance in enumerate(chances, 1))


def recall(scores: np.ndarray, gains: np.ndarray, k: int = 10) -> float:
    """The share of the items with a gain that are among the first k; tied items share their places."""
    wanted = gains > 0
    if not wanted.any():
        return 0.0
    within = (np.arange(len(scores)) < k).astype(float)
    order = np.argsort(-scores, kind='stable')
    _, ties = np.unique(-scores[order], return_inverse=True)
    shared = np.bincount(ties, within) / np.bincount(ties)
    return float(shared[ties][wanted[order]].sum() / wanted.sum())


def ranking_metrics(scores: Sequence[np.ndarray], gains: Sequence[np.ndarray], k: int = 10) -> dict[str, np.ndarray]:
    """`ndcg_at_<k>`, `reciprocal_rank` and `recall_at_<k>` of every session, float64 [sessions]."""
    both = list(zip(scores, gains, strict=True))
    return {
        f'ndcg_at_{k}': np.array([ndcg(score, gain, k) for score, gain in both]),
        'reciprocal_rank': np.array([reciprocal_rank(score, gain) for score, gain in both]),
        f'recall_at_{k}': np.array([recall(score, gain, k) for score, gain in both]),
    }


def session_weights(gains: Sequence[np.ndarray]) -> np.ndarray:
    """How much each session counts in the mean of a metric: the sum of its gains, float64 [sessions].

    A metric compares the gains of one session with each other alone: what a session with a single click is worth does
    not depend on how likely its position was looked at. So the sessions themselves have to count by that. Else most of
    them are those whose click was at the top of what the model before had shown, and a better one hardly ever wins.
    """
    return np.array([float(gain.sum()) for gain in gains])


def session_scores(
    feedback: Sequence[Feedback], queries: Mapping[str, np.ndarray], items: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """The cosines of each session's results with its query, float64 [results] each.

    :param queries: the embedding of every query, [D].
    :param items: of every item, by its object id.
    """
    found = []
    for entry in feedback:
        query = np.asarray(queries[entry.query], np.float64)
        shown = np.stack([np.asarray(items[item], np.float64) for item in entry.items])
        sizes = np.linalg.norm(shown, axis=1) * np.linalg.norm(query)
        found.append(shown @ query / np.maximum(sizes, 1e-12))
    return found


def distance_shifts(
    feedback: Sequence[Feedback], before: Sequence[np.ndarray], after: Sequence[np.ndarray]
) -> dict[str, float]:
    """`not_irrelevant_dist_shift`, by how much the cosines of clicked items rose, and `irrelevant_dist_shift`, by how
    much those of all results of irrelevant sessions fell. They are no metrics of a ranking: a collapsed model is best.
    """
    clicked, irrelevant = [], []
    for entry, old, new in zip(feedback, before, after, strict=True):
        if entry.is_irrelevant:
            irrelevant += list(old - new)
        clicked += list((new - old)[entry.clicks > 0])
    return {
        'not_irrelevant_dist_shift': float(np.mean(clicked)) if clicked else 0.0,
        'irrelevant_dist_shift': float(np.mean(irrelevant)) if irrelevant else 0.0,
    }
