"""Whether a model has collapsed: whether it gives everything nearly the same embedding, or uses few dimensions."""

from __future__ import annotations

import numpy as np

MEAN_COSINE = 0.95
"""Above this the embeddings point one way."""
LOST_RANK = 0.1
"""A model that keeps less than this part of the effective rank that it began with has collapsed."""


def mean_pairwise_cosine(embeddings: np.ndarray) -> float:
    """The mean cosine of all pairs of different rows of [N, D]; 1 if there are fewer than two."""
    unit = _unit(embeddings)
    count = len(unit)
    if count < 2:
        return 1.0
    # the sum over all pairs is the square of the sum
    return float((np.square(unit.sum(0)).sum() - np.square(unit).sum()) / (count * (count - 1)))


def effective_rank(embeddings: np.ndarray) -> float:
    """How many dimensions the rows of [N, D] use: exp of the entropy of their singular values, as shares, once their
    mean is taken off (Roy and Vetterli 2007). 0 if all rows are equal."""
    centred = _unit(embeddings)
    centred = centred - centred.mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    if values.sum() < 1e-6 * max(centred.shape):
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def find_collapse(before: np.ndarray, after: np.ndarray) -> str | None:
    """One sentence if the embeddings of the same items collapsed from `before` to `after`, both [N, D]; else None."""
    cosines = mean_pairwise_cosine(before), mean_pairwise_cosine(after)
    ranks = effective_rank(before), effective_rank(after)
    if not np.isfinite(np.asarray(after, np.float64)).all():
        return 'the model gives embeddings that are not numbers'
    if cosines[1] > MEAN_COSINE and cosines[1] > cosines[0]:
        return f'the model has collapsed: the mean cosine of two items is {cosines[1]:.3f}, and was {cosines[0]:.3f}'
    if ranks[1] < LOST_RANK * ranks[0]:
        return f'the model has collapsed: it uses {ranks[1]:.1f} dimensions, of {ranks[0]:.1f} that it used'
    return None


def _unit(embeddings: np.ndarray) -> np.ndarray:
    rows = np.nan_to_num(np.asarray(embeddings, np.float64))
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
