"""Exact retrieval, block by block, and its metrics: does a query find the items of its class?"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch.nn import functional

Distance = Literal['cosine', 'euclidean', 'sqeuclidean']

METRICS = (
    'precision_at_k',
    'recall_at_k',
    'f1_score_at_k',
    'hit_at_k',
    'average_precision',
    'reciprocal_rank',
    'ndcg_at_k',
    'dcg_at_k',
)
QUERY_BLOCK = 256
INDEX_BLOCK = 16384
# torch's default cancels the distances of near points
EXACT = 'donot_use_mm_for_euclid_dist'


@torch.inference_mode()
def search(
    queries: np.ndarray,
    index: np.ndarray,
    limit: int,
    *,
    distance: Distance = 'cosine',
    exclude: np.ndarray | None = None,
    device: torch.device | str = 'cpu',
    query_block: int = QUERY_BLOCK,
    index_block: int = INDEX_BLOCK,
) -> np.ndarray:
    """The nearest rows of the index for every query, nearest first; of equally near rows the first comes first.

    No more than `query_block` × `index_block` distances are held at a time, and the matches so far: both sides may be
    memory-mapped.

    :param queries: float32 [N, D].
    :param index: float32 [M, D].
    :param exclude: a row of the index for every query that is no match of it, int [N].
    :returns: row numbers, int64 [N, min(limit, M)], or min(limit, M - 1) columns with `exclude`.
    """
    limit = min(limit, len(index) - (exclude is not None))
    starts = range(0, len(queries), query_block)
    scores = [torch.empty(len(queries[start : start + query_block]), 0, device=device) for start in starts]
    rows = [torch.empty(len(block), 0, dtype=torch.int64, device=device) for block in scores]
    for first in range(0, len(index), index_block):
        part = _prepared(index[first : first + index_block], distance, device)
        for number, start in enumerate(starts):
            block = _prepared(queries[start : start + query_block], distance, device)
            near = block @ part.T if distance == 'cosine' else -torch.cdist(block, part, compute_mode=EXACT)
            if exclude is not None:
                hidden = torch.from_numpy(exclude[start : start + query_block]).to(device)
                inside = ((hidden >= first) & (hidden < first + len(part))).nonzero().squeeze(1)
                near[inside, hidden[inside] - first] = -torch.inf
            scores[number], rows[number] = _merge(scores[number], rows[number], near, first, limit)
    if not rows:
        return np.empty((0, limit), np.int64)
    return torch.cat(rows).cpu().numpy()


def _prepared(block: np.ndarray, distance: Distance, device: torch.device | str) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(block, np.float32)).to(device)
    return functional.normalize(tensor) if distance == 'cosine' else tensor


def _merge(
    scores: torch.Tensor, rows: torch.Tensor, near: torch.Tensor, first: int, limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `limit` of those found so far and of a new block that begins at row `first` of the index."""
    count = min(limit, near.shape[1])
    threshold, order = near.topk(count)
    if bool(((near >= threshold[:, -1:]).sum(1) > count).any()):  # topk does not say which of equal scores it keeps
        order = near.sort(dim=1, descending=True, stable=True).indices[:, :count]
    order = order.sort(dim=1).values
    scores, rows = torch.cat([scores, near.gather(1, order)], 1), torch.cat([rows, order + first], 1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :limit], rows.gather(1, order)[:, :limit]


def retrieval_metrics(relevant: np.ndarray, total: np.ndarray) -> dict[str, float]:
    """Metrics of ranked matches, each a mean over the queries. A query with nothing relevant in the index counts as 0.

    With r[i] = 1 if the i-th match (from 1) is relevant, k matches, and R relevant items in the index:

    - precision = sum(r) / k, recall = sum(r) / R, f1_score = their harmonic mean, hit = 1 if any is relevant;
    - average_precision = mean of the precision at the rank of every relevant match that was found;
    - reciprocal_rank = 1 / rank of the first relevant match;
    - dcg = r[1] + sum of r[i] / log2(i) for i from 2; ndcg = dcg / dcg of min(k, R) relevant matches at the top.

    :param relevant: bool [N, k], in the order of the matches.
    :param total: relevant items in the index for every query, int [N].
    """
    count, k = relevant.shape
    ranks = np.arange(1, k + 1)
    hits = relevant.sum(1)
    precision = hits / k
    recall = hits / np.maximum(total, 1)
    precision_at_rank = relevant.cumsum(1) / ranks
    discount = 1 / np.log2(np.maximum(ranks, 2))
    dcg = relevant @ discount
    ideal = np.concatenate([[0], discount.cumsum()])[np.minimum(total, k)]
    metrics = {
        'precision_at_k': precision,
        'recall_at_k': recall,
        'f1_score_at_k': 2 * precision * recall / np.where(hits, precision + recall, 1),
        'hit_at_k': hits > 0,
        'average_precision': (precision_at_rank * relevant).sum(1) / np.maximum(hits, 1),
        'reciprocal_rank': np.where(hits, 1 / (relevant.argmax(1) + 1), 0),
        'ndcg_at_k': dcg / np.where(total, ideal, 1),
        'dcg_at_k': dcg,
    }
    return {name: float(values.mean()) for name, values in metrics.items()}


def evaluate(
    queries: np.ndarray,
    query_labels: np.ndarray,
    index: np.ndarray,
    index_labels: np.ndarray,
    *,
    limit: int = 20,
    distance: Distance = 'cosine',
    exclude_self: bool = False,
    device: torch.device | str = 'cpu',
) -> dict[str, float]:
    """The metrics of `retrieval_metrics`, items of one label being relevant to each other.

    :param queries: float32 [N, D], with `query_labels` int [N].
    :param index: float32 [M, D], with `index_labels` int [M] of the same numbering.
    :param exclude_self: queries are the index: row i is no match of query i.
    """
    exclude = np.arange(len(queries)) if exclude_self else None
    found = search(queries, index, limit, distance=distance, exclude=exclude, device=device)
    relevant = index_labels[found] == query_labels[:, None]
    sizes = np.bincount(index_labels, minlength=int(query_labels.max()) + 1)
    return retrieval_metrics(relevant, sizes[query_labels] - exclude_self)
