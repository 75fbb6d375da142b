"""MaximumLossMiner, which pytorch-metric-learning had up to version 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.losses.options import positive


class MaximumLossMiner(nn.Module):
    """Of some random parts of a batch, the one with the highest loss.

    :param loss: which the parts are compared by, default the one that is trained. By its name in `miner_options`, with
        its options as `loss_options`.
    :param output_batch_size: items of a part, default half of the batch.
    :param num_trials: how many parts are compared.
    """

    def __init__(
        self,
        loss: nn.Module | None = None,
        loss_options: dict[str, Any] | None = None,
        output_batch_size: int | None = None,
        num_trials: int = 5,
    ):
        super().__init__()
        if loss_options and loss is None:
            raise ValueError('loss_options are given without a loss')
        if output_batch_size is not None:
            positive('output_batch_size', output_batch_size)
        positive('num_trials', num_trials)
        self.loss, self.output_batch_size, self.num_trials = loss, output_batch_size, int(num_trials)

    @torch.no_grad()
    def rows(self, embeddings: Tensor, labels: Tensor, loss: nn.Module) -> Tensor:
        """The rows of the part, int64.

        :param loss: the one that is trained.
        """
        size = min(int(self.output_batch_size or (len(labels) + 1) // 2), len(labels))
        parts = [torch.randperm(len(labels))[:size].sort().values.to(labels.device) for _ in range(self.num_trials)]
        values = [float((self.loss or loss)(embeddings[rows], labels[rows])) for rows in parts]
        return parts[values.index(max(values))]
