"""LiftedStructureLoss in B × B memory."""

from __future__ import annotations

import torch
from pytorch_metric_learning import losses
from torch import Tensor

from training.losses.matrix.pairs import LossDict, MatrixForm, PairMasks, pair_losses


class LiftedStructureLoss(MatrixForm, losses.LiftedStructureLoss):
    """max(0, d(a, p) + log Σ_n exp(margin − d(n)))² / 2, n over the negatives of both the anchor and the positive (Song
    et al. 2016, https://arxiv.org/abs/1511.06452).

    The sum over both is the sum of two numbers, one for every item.
    """

    def has_matrix_form(self, other: bool) -> bool:
        return not other

    def matrix_loss(self, distances: Tensor, masks: PairMasks, labels: Tensor) -> LossDict:
        anchors, positives = masks.positives.nonzero(as_tuple=True)
        if not len(anchors) or not masks.negatives.any():
            return self.zero_losses()
        lowest = torch.finfo(distances.dtype).min
        exponents = self.distance.margin(self.neg_margin, distances).masked_fill(~masks.negatives, lowest)
        negatives = exponents.logsumexp(1)
        pushed = torch.logaddexp(negatives[anchors], negatives[positives])
        # a miner may leave a pair without negatives, and the library takes the logarithm of none to be 0
        having = masks.negatives.any(1)
        pushed = torch.where(having[anchors] | having[positives], pushed, 0)
        pulled = self.distance.margin(distances[anchors, positives], self.pos_margin)
        return pair_losses((pushed + pulled).relu() ** 2 / 2, anchors, positives)
