"""ThresholdConsistentMarginLoss in B × B memory."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor

from training.losses.matrix.pairs import LossDict, PairMasks, reduced


class ThresholdConsistentMarginLoss(losses.ThresholdConsistentMarginLoss):
    """Positive pairs below and negative pairs above a margin of similarity, each the mean of by how much (Zhang et al.
    2023, https://arxiv.org/abs/2307.04047). The library gathers both embeddings of every pair, B × B × D."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> LossDict:
        if indices_tuple is not None or ref_emb is not embeddings or labels is None:
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        masks = PairMasks.of(labels, labels)
        similarities = self.distance(embeddings)
        near = _mean(self.margin_plus - similarities, masks.positives & (similarities <= self.margin_plus))
        far = _mean(similarities - self.margin_minus, masks.negatives & (similarities >= self.margin_minus))
        return {'loss': reduced(self.lambda_plus * near + self.lambda_minus * far)}


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Of the entries that the mask names, 0 of none."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)
