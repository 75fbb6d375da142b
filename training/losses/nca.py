"""NCALoss that bears a batch without positives."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import losses
from torch import Tensor

from training.losses.matrix.pairs import LossDict


class NCALoss(losses.NCALoss):
    """−log Σ_p softmax(−scale · d²)_p for every item, p over its positives (Goldberger et al. 2004, Neighbourhood
    Components Analysis, NIPS). Of a batch without positives the library's is not a number, and this is 0."""

    def nca_computation(self, *arguments: Any) -> LossDict:
        found: LossDict = super().nca_computation(*arguments)
        losses: Tensor = found['loss']['losses']
        return found if len(losses) else self.zero_losses()
