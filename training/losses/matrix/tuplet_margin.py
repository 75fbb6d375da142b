"""TupletMarginLoss in B × B memory."""

from __future__ import annotations

import torch
from pytorch_metric_learning import losses
from torch import Tensor

from training.losses.matrix.pairs import LossDict, MatrixForm, PairMasks, pair_losses


class TupletMarginLoss(MatrixForm, losses.TupletMarginLoss):
    """log(1 + Σ_n exp(s (cos θ_n − cos(θ_p − margin)))) for every positive pair, n over the anchor's negatives (Yu and
    Tao 2019, Deep Metric Learning with Tuplet Margin Loss, ICCV).

    As with NTXentLoss, the sum over the negatives is one number for every anchor.
    """

    def matrix_loss(self, distances: Tensor, masks: PairMasks, labels: Tensor) -> LossDict:
        anchors, positives = masks.positives.nonzero(as_tuple=True)
        if not len(anchors):
            return self.zero_losses()
        lowest = torch.finfo(distances.dtype).min
        negatives = (self.scale * distances).masked_fill(~masks.negatives, lowest).logsumexp(1)[anchors]
        # equal items are as similar as 1 and a rounding error, for which the library gives NaN
        edge = 1 - torch.finfo(distances.dtype).eps
        positive = torch.cos(torch.acos(distances[anchors, positives].clamp(-edge, edge)) - self.margin)
        losses = torch.logaddexp(negatives - self.scale * positive, negatives.new_zeros(()))
        return pair_losses(losses, anchors, positives)
