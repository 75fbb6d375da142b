"""What the columns of a batch have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def concatenated(
    columns: Sequence[Tensor], labels: Tensor | None, keys: Sequence[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """All columns as one, with the labels of all, without the items whose content came before.

    :raises ValueError: there are no labels.
    """
    if labels is None:
        raise ValueError('the loss learns from labels, and there are none')
    if len(columns) == 1:
        return columns[0], labels
    embeddings, labels = torch.cat(list(columns)), labels.repeat(len(columns))
    if keys is None:
        return embeddings, labels
    distinct, number = torch.cat(list(keys)).unique(return_inverse=True)
    if len(distinct) == len(labels):
        return embeddings, labels
    places = torch.arange(len(labels), device=labels.device)
    first = torch.full_like(distinct, len(labels)).scatter_reduce(0, number, places, 'amin').sort().values
    return embeddings[first], labels[first]


def false_negatives(labels: Tensor | None, keys: Sequence[Tensor] | None, size: int, device: torch.device) -> Tensor:
    """For anchor i and the positive of row j ≠ i: whether that is known to be no negative of i, bool [B, B].

    It is none if the rows have one label, if the anchors or the positives have equal content, or if it is the anchor
    itself.
    """
    mask = torch.zeros(size, size, dtype=torch.bool, device=device)
    if labels is not None:
        mask |= labels[:, None] == labels
    if keys is not None:
        anchors, positives = keys
        mask |= (anchors[:, None] == anchors) | (positives[:, None] == positives) | (anchors[:, None] == positives)
    return mask.fill_diagonal_(False)
