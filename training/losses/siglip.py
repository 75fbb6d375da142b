"""SigLIPLoss: every pair of a text and an image is a question of yes or no."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from training.losses.columns import false_negatives
from training.losses.objective import Objective, Shape
from training.losses.options import positive


class SigLIPLoss(Objective):
    """−Σ_ij log σ(z_ij (exp(t) · cos_ij + b)) / B, z_ij is 1 on the diagonal and −1 elsewhere, t and b learned (Zhai et
    al. 2023, https://arxiv.org/abs/2303.15343). What is known to be no negative is left out.

    :param scale: exp(t) at the start.
    :param bias: b at the start.
    """

    shape: Shape = 'pairs'

    def __init__(self, scale: float = 10.0, bias: float = -10.0):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(positive('scale', scale))))
        self.logit_bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        one, two = (normalize(column) for column in columns)
        logits = self.logit_scale.exp() * one @ two.T + self.logit_bias
        sign = 2 * torch.eye(len(one), dtype=logits.dtype, device=logits.device) - 1
        ignored = false_negatives(labels, keys, len(one), one.device)
        return -logsigmoid(sign * logits).masked_fill(ignored, 0).sum() / len(one)
