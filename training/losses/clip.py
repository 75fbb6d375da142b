"""CLIPLoss: texts and images, each finding the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from training.losses.columns import false_negatives
from training.losses.multiple_negative_ranking import contrast
from training.losses.objective import Objective, Shape
from training.losses.options import positive


class CLIPLoss(Objective):
    """The mean of −log softmax(exp(t) · cos) over the rows and over the columns of a batch of pairs, t learned (Radford
    et al. 2021, https://arxiv.org/abs/2103.00020). What is known to be no negative is left out.

    :param temperature: exp(−t) at the start, default the model's own, or 0.07 if it has none.
    :param max_scale: exp(t) is held at or below this.
    :param logit_scale: t of the model.
    """

    shape: Shape = 'pairs'

    def __init__(self, temperature: float | None = None, max_scale: float = 100.0, *, logit_scale: float | None = None):
        super().__init__()
        if temperature is not None or logit_scale is None:
            logit_scale = -math.log(positive('temperature', 0.07 if temperature is None else temperature))
        self.highest = math.log(positive('max_scale', max_scale))
        self.logit_scale = nn.Parameter(torch.tensor(min(float(logit_scale), self.highest)))

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        with torch.no_grad():  # not clamp() in the graph, whose gradient would hold it there for good
            self.logit_scale.clamp_(max=self.highest)
        one, two = (normalize(column) for column in columns)
        ignored = false_negatives(labels, keys, len(one), one.device)
        return contrast(self.logit_scale.exp() * one @ two.T, ignored, symmetric=True)
