"""ContrastiveLoss and SignalToNoiseRatioContrastiveLoss without lists of pairs."""

from __future__ import annotations

from pytorch_metric_learning import losses
from torch import Tensor

from training.losses.matrix.pairs import LossDict, MatrixForm, PairMasks, masked_losses
from training.losses.matrix.signal_to_noise import SNRDistance


class ContrastiveLoss(MatrixForm, losses.ContrastiveLoss):
    """max(0, d(a, p) − pos_margin) over positive, max(0, neg_margin − d(a, n)) over negative pairs (Hadsell et al.
    2006, Dimensionality Reduction by Learning an Invariant Mapping, CVPR)."""

    def matrix_loss(self, distances: Tensor, masks: PairMasks, labels: Tensor) -> LossDict:
        reducers = self.reducer.reducers
        near, far = self.pos_calc(distances, self.pos_margin), self.neg_calc(distances, self.neg_margin)
        return {
            'pos_loss': masked_losses(near, masks.positives, reducers['pos_loss'], 'pos_pair'),
            'neg_loss': masked_losses(far, masks.negatives, reducers['neg_loss'], 'neg_pair'),
        }


class SignalToNoiseRatioContrastiveLoss(ContrastiveLoss, losses.SignalToNoiseRatioContrastiveLoss):
    """ContrastiveLoss over var(a − b) / var(a) (Yuan et al. 2019, https://arxiv.org/abs/1904.02616)."""

    def get_default_distance(self) -> SNRDistance:
        return SNRDistance()
