"""Losses that the library computes from a matrix already: only its lists of pairs are left out."""

from __future__ import annotations

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.loss_and_miner_utils import logsumexp
from torch import Tensor

from training.losses.matrix.pairs import LossDict, MatrixForm, PairMasks, element_losses


class _Rows(MatrixForm):
    def matrix_loss(self, distances: Tensor, masks: PairMasks, labels: Tensor) -> LossDict:
        positives, negatives = masks.positives.to(distances.dtype), masks.negatives.to(distances.dtype)
        return self._compute_loss(distances, positives, negatives)  # type: ignore[attr-defined]


class MultiSimilarityLoss(_Rows, losses.MultiSimilarityLoss):
    """log(1 + Σ_p exp(−α (s_p − base))) / α + log(1 + Σ_n exp(β (s_n − base))) / β for every anchor (Wang et al. 2019,
    https://arxiv.org/abs/1904.06627)."""


class SupConLoss(_Rows, losses.SupConLoss):
    """The mean over an anchor's positives of −log(exp(s_p / t) / Σ_i exp(s_i / t)), i over all others (Khosla et al.
    2020, https://arxiv.org/abs/2004.11362)."""


class GeneralizedLiftedStructureLoss(_Rows, losses.GeneralizedLiftedStructureLoss):
    """max(0, log Σ_p exp(d_p − pos_margin) + log Σ_n exp(neg_margin − d_n)) for every anchor (Hermans et al. 2017,
    https://arxiv.org/abs/1703.07737)."""


class CircleLoss(_Rows, losses.CircleLoss):
    """log(1 + Σ_n exp(γ α_n (s_n − m)) Σ_p exp(−γ α_p (s_p − 1 + m))) for every anchor (Sun et al. 2020,
    https://arxiv.org/abs/2002.10857)."""

    def matrix_loss(self, distances: Tensor, masks: PairMasks, labels: Tensor) -> LossDict:
        weight_p = (self.op - distances.detach()).relu()
        weight_n = (distances.detach() - self.on).relu()
        pulled = logsumexp(-self.gamma * weight_p * (distances - self.delta_p), masks.positives, add_one=False)
        pushed = logsumexp(self.gamma * weight_n * (distances - self.delta_n), masks.negatives, add_one=False)
        both = masks.positives.any(1, keepdim=True) & masks.negatives.any(1, keepdim=True)
        return element_losses(torch.where(both, self.soft_plus(pulled + pushed), 0))
