"""TripletMarginLoss over all triplets of a batch."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer, SumReducer
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.losses.matrix.pairs import CHUNK, LossDict, MatrixForm, PairMasks, reduced


class TripletMarginLoss(MatrixForm, losses.TripletMarginLoss):
    """max(0, d(a, p) − d(a, n) + margin) over all triplets (Schroff et al. 2015, https://arxiv.org/abs/1503.03832).

    The library lists all triplets, of which there are up to B³. Here every positive pair is laid against the row of
    its anchor, some pairs at a time, and what is kept is the gradient, B × B.
    """

    def has_matrix_form(self, other: bool) -> bool:
        simple = type(self.reducer) in (AvgNonZeroReducer, MeanReducer, SumReducer)
        return simple and self.triplets_per_anchor == 'all' and not (other and self.swap)

    def matrix_loss(self, distances: Tensor, masks: PairMasks, labels: Tensor) -> LossDict:
        if self.distance.is_inverted:
            distances = -distances
        total, counted, triplets = _TripletSum.apply(distances, masks, self.margin, self.swap, self.smooth_loss)
        if not triplets:
            return self.zero_losses()
        if type(self.reducer) is SumReducer:
            return {'loss': reduced(total)}
        number = counted if type(self.reducer) is AvgNonZeroReducer else triplets
        return {'loss': reduced(total / max(1, number))}


class _TripletSum(torch.autograd.Function):
    """The sum of the losses of all triplets, how many are above 0, and how many there are."""

    @staticmethod
    def forward(
        ctx: Any, distances: Tensor, masks: PairMasks, margin: float, swap: bool, smooth: bool
    ) -> tuple[Tensor, int, int]:
        # an anchor's distance to what is no negative of it is beyond all margins
        far = distances.masked_fill(~masks.negatives, float('inf'))
        anchors, positives = masks.positives.nonzero(as_tuple=True)
        gradient = torch.zeros_like(distances) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64, device=distances.device)
        counted = torch.zeros((), dtype=torch.int64, device=distances.device)
        step = max(1, CHUNK // distances.shape[1])
        for a, p in zip(anchors.split(step), positives.split(step), strict=True):
            negative = far[a]
            if swap:  # a miner may have left a negative of the anchor out of the positive's
                swapped = distances[p].masked_fill(~masks.negatives[a], float('inf'))
            nearer = torch.minimum(negative, swapped) if swap else negative
            violation = (distances[a, p] + margin)[:, None] - nearer
            loss = torch.nn.functional.softplus(violation) if smooth else violation.clamp(min=0)
            active = loss > 0
            total += loss.sum()
            counted += active.sum()
            if gradient is None:
                continue
            slope = torch.sigmoid(violation) if smooth else active.to(distances.dtype)
            gradient.index_put_((a, p), slope.sum(1), accumulate=True)
            if swap:  # equal distances share the gradient, as they do in torch.minimum
                share = (negative < swapped).to(slope.dtype).add_((negative == swapped).to(slope.dtype), alpha=0.5)
                gradient.index_add_(0, p, slope * (1 - share), alpha=-1)
                slope = slope * share
            gradient.index_add_(0, a, slope, alpha=-1)
        ctx.gradient = gradient
        triplets = int((masks.positives.sum(1) * masks.negatives.sum(1)).sum())
        return total.to(distances.dtype), int(counted), triplets

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Any) -> tuple[Tensor | None, ...]:
        return ctx.gradient * outer[0], None, None, None, None
