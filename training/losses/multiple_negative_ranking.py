"""MultipleNegativeRankingLoss: which of the positives of a batch is mine?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from training.losses.columns import false_negatives
from training.losses.objective import Objective, Shape
from training.losses.options import one_of, positive


class MultipleNegativeRankingLoss(Objective):
    """−log(exp(s_ii) / Σ_j exp(s_ij)), s_ij = scale · similarity(anchor i, positive j): InfoNCE (Oord et al. 2018,
    https://arxiv.org/abs/1807.03748) on pairs (Henderson et al. 2017, https://arxiv.org/abs/1705.00652).

    What is known to be no negative, by labels or equal content, is left out of the sum.

    :param scale: of the similarities, default 20.
    :param temperature: 1 / scale; give one of the two.
    :param symmetric: the mean of the loss and of the same with anchors and positives swapped.
    :param similarity: 'cosine' or 'dot'.
    """

    shape: Shape = 'pairs'

    def __init__(
        self,
        scale: float | None = None,
        temperature: float | None = None,
        symmetric: bool = False,
        similarity: str = 'cosine',
    ):
        super().__init__()
        if scale is not None and temperature is not None:
            raise ValueError('scale and temperature are both given: one is 1 / the other')
        if temperature is not None:
            scale = 1 / positive('temperature', temperature)
        self.scale = positive('scale', 20.0 if scale is None else scale)
        self.symmetric = one_of('symmetric', symmetric, (True, False))
        self.similarity = one_of('similarity', similarity, ('cosine', 'dot'))

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        anchors, positives = columns
        if self.similarity == 'cosine':
            anchors, positives = normalize(anchors), normalize(positives)
        ignored = false_negatives(labels, keys, len(anchors), anchors.device)
        return contrast(self.scale * anchors @ positives.T, ignored, self.symmetric)


def contrast(logits: Tensor, ignored: Tensor, symmetric: bool) -> Tensor:
    """Cross entropy of the rows against the diagonal, and of the columns if symmetric; the mean of both.

    :param ignored: entries that are left out, bool [B, B].
    """
    logits = logits.masked_fill(ignored, float('-inf'))
    target = torch.arange(len(logits), device=logits.device)
    loss = cross_entropy(logits, target)
    return (loss + cross_entropy(logits.T, target)) / 2 if symmetric else loss
