"""CentroidTripletLoss, which pytorch-metric-learning had up to version 1."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.reducers import AvgNonZeroReducer
from torch import Tensor

from training.losses.matrix.pairs import LossDict, masked_losses


class CentroidTripletLoss(BaseMetricLossFunction):
    """max(0, d(a, c_p) − d(a, c_n) + margin) for every item and every other class (Wieczorek et al. 2021,
    https://arxiv.org/abs/2104.13643).

    c_p is the mean of the other items of the anchor's class, c_n that of all items of another class in the batch.

    :param margin: by how much other classes must be farther.
    :param smooth_loss: log(1 + exp(…)) in place of max(0, …).
    """

    def __init__(self, margin: float = 0.05, smooth_loss: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.margin, self.smooth_loss = margin, smooth_loss

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> LossDict:
        if indices_tuple is not None:
            raise ValueError('CentroidTripletLoss takes no miner: its triplets are made of classes')
        classes, own, counts = labels.unique(return_inverse=True, return_counts=True)
        sums = embeddings.new_zeros(len(classes), embeddings.shape[1]).index_add(0, own, embeddings)
        others = (sums[own] - embeddings) / (counts[own] - 1).clamp(min=1)[:, None]
        near = self.distance(embeddings, others).diagonal()[:, None]
        far = self.distance(embeddings, sums / counts[:, None])
        violation = self.distance.margin(near, far) + self.margin
        loss = torch.nn.functional.softplus(violation) if self.smooth_loss else violation.relu()
        mask = (own[:, None] != torch.arange(len(classes), device=own.device)) & (counts[own] > 1)[:, None]
        if not mask.any():
            return self.zero_losses()
        return {'loss': masked_losses(loss, mask, self.reducer, 'pos_pair')}

    def get_default_reducer(self) -> AvgNonZeroReducer:
        return AvgNonZeroReducer()
