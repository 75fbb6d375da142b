"""DynamicSoftMarginLoss with a histogram that outlives its batch."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor

from training.losses.matrix.pairs import PairMasks


class DynamicSoftMarginLoss(losses.DynamicSoftMarginLoss):
    """d(a, p) − d(a, n) over all triplets, each times the share of triplets that violated less, from a running
    histogram (Zhang and Rusinkiewicz 2019, Learning Local Descriptors With a CDF-Based Dynamic Soft Margin, ICCV).

    The library keeps the graph of every batch before in its histogram, which the second backward trips over, and has
    no bin for the worst violations. Here the histogram is a constant, part of the state, and set by training alone.
    """

    hist_: Tensor

    def __init__(self, min_val: float = -2.0, num_bins: int = 10, momentum: float = 0.01, **kwargs: Any):
        super().__init__(min_val=min_val, num_bins=num_bins, momentum=momentum, **kwargs)
        del self.hist_
        self.register_buffer('hist_', torch.zeros(self.num_bins))

    def compute_loss_with_labels(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> Tensor:
        if indices_tuple is not None:
            return super().compute_loss_with_labels(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        masks = PairMasks.of(labels, ref_labels)
        anchors, positives = masks.positives.nonzero(as_tuple=True)
        distances = self.distance(embeddings, ref_emb)
        differences = distances[anchors, positives][:, None] - distances[anchors]
        return differences[masks.negatives[anchors]]

    @torch.no_grad()
    def update_histogram(self, data: Tensor) -> None:
        if not self.training and self.hist_.any():
            return
        place = (data - self.min_val) / self.delta
        low = self._bin(data)
        momentum = self.momentum if self.hist_.any() else 1.0
        histogram = (1 - momentum) * self.hist_
        histogram = histogram.scatter_add(0, low, momentum * (1 - place.frac()))
        histogram = histogram.scatter_add(0, (low + 1).clamp(max=self.num_bins - 1), momentum * place.frac())
        self.hist_ = histogram / histogram.sum()

    def weigh_loss(self, data: Tensor) -> Tensor:
        return self.hist_.cumsum(0)[self._bin(data)] * data

    def _bin(self, data: Tensor) -> Tensor:
        return ((data - self.min_val) / self.delta).floor().long().clamp(0, self.num_bins - 1)
