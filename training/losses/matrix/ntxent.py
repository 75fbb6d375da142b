"""NTXentLoss in B × B memory."""

from __future__ import annotations

import math

import torch
from pytorch_metric_learning import losses
from torch import Tensor

from training.losses.matrix.pairs import LossDict, MatrixForm, PairMasks, pair_losses


class NTXentLoss(MatrixForm, losses.NTXentLoss):
    """−log(exp(s_p / t) / (exp(s_p / t) + Σ_n exp(s_n / t))) for every positive pair, n over the anchor's negatives
    (Chen et al. 2020, https://arxiv.org/abs/2002.05709; Oord et al. 2018, https://arxiv.org/abs/1807.03748).

    The sum over the negatives is one number for every anchor; the library makes it anew for every positive pair, from
    a matrix of all positive by all negative pairs.
    """

    def matrix_loss(self, distances: Tensor, masks: PairMasks, labels: Tensor) -> LossDict:
        similarities = (distances if self.distance.is_inverted else -distances) / self.temperature
        anchors, positives = masks.positives.nonzero(as_tuple=True)
        if not len(anchors):
            return self.zero_losses()
        finite = torch.finfo(similarities.dtype)
        negatives = similarities.masked_fill(~masks.negatives, finite.min).logsumexp(1)[anchors]
        positive = similarities[anchors, positives]
        logarithm = positive - torch.logaddexp(positive, negatives)
        # the library adds the smallest float to what it takes the logarithm of
        losses = -torch.logaddexp(logarithm, logarithm.new_tensor(math.log(finite.tiny)))
        return pair_losses(losses, anchors, positives)
