"""Losses of pytorch-metric-learning as objectives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.losses.columns import concatenated
from training.losses.maximum_loss_miner import MaximumLossMiner
from training.losses.objective import Objective, Shape


class MetricObjective(Objective):
    """A loss over labelled items, and what picks the pairs or triplets that it looks at.

    :param loss: of pytorch-metric-learning.
    :param miner: likewise; None for all pairs.
    """

    shape: Shape = 'labelled'

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None):
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        embeddings, labels = concatenated(columns, labels, keys)
        if isinstance(self.miner, MaximumLossMiner):
            rows = self.miner.rows(embeddings, labels, self.loss)
            return self.loss(embeddings[rows], labels[rows]).reshape(())
        mined = self.miner(embeddings, labels) if self.miner is not None else None
        return self.loss(embeddings, labels, mined).reshape(())


class TripletObjective(Objective):
    """A loss of pytorch-metric-learning over ready triplets: the miner is EmbeddingsAlreadyPackagedAsTriplets."""

    shape: Shape = 'triplets'

    def __init__(self, loss: nn.Module, miner: nn.Module):
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        embeddings = torch.stack(list(columns), 1).flatten(0, 1)  # as the miner has them: query, positive, negative
        rows = torch.arange(len(embeddings), device=embeddings.device)
        classes = rows // 3 * 2 + (rows % 3 == 2)
        mined = tuple(indices.to(embeddings.device) for indices in self.miner(embeddings, classes))
        return self.loss(embeddings, classes, mined).reshape(())
