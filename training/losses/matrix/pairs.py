"""Positive and negative pairs of a batch as masks over its matrix of distances, and sums over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer, SumReducer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LossDict = dict[str, dict[str, Any]]
# elements of the largest temporary tensor: 16 MiB of float32
CHUNK = 2**22


@dataclass(frozen=True)
class PairMasks:
    """Which entries of a matrix of distances are positive and which negative pairs, bool [B, R] each.

    Given to a loss of this package in place of the library's `indices_tuple`.
    """

    positives: Tensor
    negatives: Tensor

    @classmethod
    def of(cls, labels: Tensor, ref_labels: Tensor) -> PairMasks:
        """All pairs: an item makes none with itself."""
        same = labels[:, None] == ref_labels
        negatives = ~same
        if ref_labels is labels:
            same.fill_diagonal_(False)
        return cls(same, negatives)

    @classmethod
    def of_pairs(cls, indices: tuple[Tensor, ...], shape: tuple[int, int]) -> PairMasks | None:
        """What a miner of pairs chose.

        :param indices: as :meth:`indices` gives them.
        :return: None if it chose one twice, which masks cannot tell.
        """
        a1, p, a2, n = indices
        masks = [torch.zeros(shape, dtype=torch.bool, device=a1.device) for _ in range(2)]
        for mask, anchors, others in zip(masks, (a1, a2), (p, n), strict=True):
            mask[anchors, others] = True
            if mask.sum() < len(anchors):
                return None
        return cls(*masks)

    def indices(self) -> tuple[Tensor, ...]:
        """As the library has it: anchors and positives, anchors and negatives, int64 vectors."""
        return (*self.positives.nonzero(as_tuple=True), *self.negatives.nonzero(as_tuple=True))


class MatrixForm:
    """Mixed into a pair loss of pytorch-metric-learning: B × B masks in place of its lists of indices.

    The pairs that a miner chose become masks too. Where one of triplets did, the library's own form is used.
    """

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> LossDict:
        if indices_tuple is None and labels is not None and self.has_matrix_form(ref_emb is not embeddings):
            indices_tuple = PairMasks.of(labels, ref_labels)
        elif isinstance(indices_tuple, tuple) and len(indices_tuple) == 4 and labels is not None:
            few = max(map(len, indices_tuple)) <= 1  # the library has a rule for these
            if not few and self.has_matrix_form(ref_emb is not embeddings):
                shape = len(embeddings), len(ref_emb)
                indices_tuple = PairMasks.of_pairs(indices_tuple, shape) or indices_tuple
        if not isinstance(indices_tuple, PairMasks):
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)  # type: ignore[misc]
        if not self.has_matrix_form(ref_emb is not embeddings):
            indices = indices_tuple.indices()
            return super().compute_loss(embeddings, labels, indices, ref_emb, ref_labels)  # type: ignore[misc]
        if indices_tuple.positives.numel() <= 2 and all(  # the library's rule
            mask.sum() <= 1 for mask in (indices_tuple.positives, indices_tuple.negatives)
        ):
            return self.zero_losses()  # type: ignore[attr-defined]
        return self.matrix_loss(self.distance(embeddings, ref_emb), indices_tuple, labels)  # type: ignore[attr-defined]

    def has_matrix_form(self, other: bool) -> bool:
        """Whether these options have a matrix form, among the items or, if `other`, against reference items."""
        return True

    def matrix_loss(self, distances: Tensor, masks: PairMasks, labels: Tensor) -> LossDict:
        """What the library's `compute_loss` returns.

        :param distances: of anchors and references, or similarities if `self.distance.is_inverted`, [B, R].
        """
        raise NotImplementedError


def element_losses(losses: Tensor) -> LossDict:
    """One loss for every anchor."""
    rows = torch.arange(len(losses), device=losses.device)
    return {'loss': {'losses': losses, 'indices': rows, 'reduction_type': 'element'}}


def pair_losses(losses: Tensor, anchors: Tensor, positives: Tensor) -> LossDict:
    """One loss for every positive pair."""
    return {'loss': {'losses': losses, 'indices': (anchors, positives), 'reduction_type': 'pos_pair'}}


def reduced(loss: Tensor) -> dict[str, Any]:
    """The loss of the whole batch."""
    return {'losses': loss, 'indices': None, 'reduction_type': 'already_reduced'}


def masked_losses(losses: Tensor, mask: Tensor, reducer: Any, kind: str) -> dict[str, Any]:
    """The entries of the matrix that the mask names, summed up in place where the reducer is one of the simple ones.

    :param kind: 'pos_pair' or 'neg_pair'.
    """
    if type(reducer) not in (AvgNonZeroReducer, MeanReducer, SumReducer):
        return {'losses': losses[mask], 'indices': mask.nonzero(as_tuple=True), 'reduction_type': kind}
    losses = losses * mask
    if type(reducer) is AvgNonZeroReducer:
        losses = losses.relu()
        return reduced(losses.sum() / losses.count_nonzero().clamp(min=1))
    return reduced(losses.sum() if type(reducer) is SumReducer else losses.sum() / mask.sum().clamp(min=1))


def over_pairs(function: Callable[[Tensor, Tensor], Tensor], anchors: Tensor, others: Tensor, width: int) -> Tensor:
    """function(anchors, others) -> [P], with its temporaries of [P, width] made piece by piece, and made again for
    the gradient, if they are large."""
    step = max(1, CHUNK // width)
    if len(anchors) <= step:
        return function(anchors, others)
    pieces = zip(anchors.split(step), others.split(step), strict=True)
    return torch.cat([checkpoint(function, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces])
