"""The distance of the signal-to-noise ratio in B × R memory."""

from __future__ import annotations

import torch
from pytorch_metric_learning import distances
from torch import Tensor


class SNRDistance(distances.SNRDistance):
    """var(a − b) / var(a), over the dimensions (Yuan et al. 2019, https://arxiv.org/abs/1904.02616).

    The variance of a difference is the squared distance of the centred vectors over D − 1; the library makes all
    differences, B × R × D.
    """

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        query = query_emb - query_emb.mean(1, keepdim=True)
        reference = ref_emb - ref_emb.mean(1, keepdim=True)
        signal = query.square().sum(1, keepdim=True)
        noise = torch.addmm(signal + reference.square().sum(1), query, reference.T, alpha=-2)
        return noise.clamp(min=0) / signal
