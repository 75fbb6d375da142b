"""SelfSupervisedLoss: a loss of labelled items over two views of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pytorch_metric_learning.losses import SelfSupervisedLoss as Library
from torch import Tensor, nn

from training.losses.columns import concatenated
from training.losses.objective import Objective, Shape


class SelfSupervisedLoss(Objective):
    """The two items of a row are one class. Rows of one label are one class too, where the data have labels.

    :param loss: of pytorch-metric-learning.
    :param symmetric: compare all items; False compares the items of the first column with those of the second.
    """

    shape: Shape = 'pairs'

    def __init__(self, loss: nn.Module, symmetric: bool = True):
        super().__init__()
        if type(loss).__name__ not in Library.supported_losses():
            raise ValueError(f'the loss inside must be one of {", ".join(Library.supported_losses())}')
        self.loss, self.symmetric = loss, bool(symmetric)

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        if labels is None:
            labels = torch.arange(len(columns[0]), device=columns[0].device)
        if not self.symmetric:
            one, two = columns
            loss = self.loss(one, labels, ref_emb=two, ref_labels=labels.clone())
            return loss.reshape(())
        embeddings, labels = concatenated(columns, labels, keys)
        return self.loss(embeddings, labels).reshape(())
