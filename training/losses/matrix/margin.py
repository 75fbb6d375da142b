"""MarginLoss over all triplets of a batch."""

from __future__ import annotations

import torch
from pytorch_metric_learning import losses, reducers
from torch import Tensor

from training.losses.matrix.pairs import LossDict, MatrixForm, PairMasks, reduced


class MarginLoss(MatrixForm, losses.MarginLoss):
    """max(0, margin + d(a, p) − β) + max(0, margin + β − d(a, n)) (Wu et al. 2017, https://arxiv.org/abs/1706.07567).

    The two terms of a triplet know nothing of each other, so the sum over an anchor's P × N triplets is N times the
    sum over its positives and P times that over its negatives.
    """

    def has_matrix_form(self, other: bool) -> bool:
        divided = all(type(reducer) is reducers.DivisorReducer for reducer in self.reducer.reducers.values())
        return divided and self.triplets_per_anchor == 'all'

    def matrix_loss(self, distances: Tensor, masks: PairMasks, labels: Tensor) -> LossDict:
        positives, negatives = masks.positives.sum(1), masks.negatives.sum(1)
        triplets = positives * negatives
        beta = self.beta.to(distances)
        of_anchor = beta[labels] if len(beta) > 1 else beta.expand(len(distances))
        margin = self.distance.margin
        near = (margin(distances, of_anchor[:, None]) + self.margin).relu() * masks.positives
        far = (margin(of_anchor[:, None], distances) + self.margin).relu() * masks.negatives
        counted = ((near > 0).sum(1) * negatives + (far > 0).sum(1) * positives).sum().clamp(min=1)
        total = (near.sum(1) * negatives + far.sum(1) * positives).sum() / counted
        if not self.learn_beta:
            regular = self.zero_loss()
        elif len(beta) == 1:
            regular = reduced((beta * self.nu).sum() * triplets.any())
        else:
            regular = reduced((of_anchor * triplets).sum() * self.nu / counted)
        return {'margin_loss': reduced(torch.where(triplets.any(), total, 0)), 'beta_reg_loss': regular}
