"""VICRegLoss: two views of every item, and no negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_metric_learning import losses
from torch import Tensor
from torch.nn.functional import mse_loss

from training.losses.objective import Objective, Shape


class VICRegLoss(Objective):
    """λ · mean squared distance of the views + µ · how far the deviation of each dimension is below 1 + ν · squared
    covariances of the dimensions (Bardes et al. 2022, https://arxiv.org/abs/2105.04906). Of a single pair it is the
    first term alone.

    :param invariance_lambda: λ.
    :param variance_mu: µ.
    :param covariance_v: ν.
    :param eps: added to the variances.
    :param reducer: of pytorch-metric-learning.
    """

    shape: Shape = 'pairs'

    def __init__(
        self,
        invariance_lambda: float = 25,
        variance_mu: float = 25,
        covariance_v: float = 1,
        eps: float = 1e-4,
        reducer: Any = None,
    ):
        super().__init__()
        self.loss = losses.VICRegLoss(invariance_lambda, variance_mu, covariance_v, eps, reducer=reducer)

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        one, two = columns
        if len(one) < 2:  # neither variance nor covariance
            return self.loss.invariance_lambda * mse_loss(one, two)
        return self.loss(one, ref_emb=two).reshape(())
