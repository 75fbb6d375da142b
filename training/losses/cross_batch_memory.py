"""CrossBatchMemory: a batch against the embeddings of batches before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pytorch_metric_learning.losses import CrossBatchMemory as Library
from torch import Tensor, nn

from training.losses.columns import concatenated
from training.losses.matrix import MatrixForm, PairMasks
from training.losses.objective import Objective, Shape
from training.losses.options import positive


class CrossBatchMemory(Objective):
    """The loss of a batch against the latest `memory_size` embeddings, its own included (Wang et al. 2020,
    https://arxiv.org/abs/1912.06798). An item is no positive of itself.

    Equal to the library's, whose place in the ring is no part of its state. Outside of training, a batch is compared
    with itself alone, and leaves no trace.

    :param loss: a loss of pytorch-metric-learning that knows reference embeddings.
    :param miner: picks the pairs; None for all.
    """

    shape: Shape = 'labelled'
    memory: Tensor
    memory_labels: Tensor
    seen: Tensor

    def __init__(self, loss: nn.Module, embedding_size: int, memory_size: int = 1024, miner: nn.Module | None = None):
        super().__init__()
        positive('memory_size', memory_size)
        if type(loss).__name__ not in Library.supported_losses():
            raise ValueError(f'the loss inside must be one of {", ".join(Library.supported_losses())}')
        self.loss, self.miner, self.memory_size = loss, miner, int(memory_size)
        self.register_buffer('memory', torch.zeros(self.memory_size, embedding_size))
        self.register_buffer('memory_labels', torch.zeros(self.memory_size, dtype=torch.int64))
        self.register_buffer('seen', torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        embeddings, labels = concatenated(columns, labels, keys)
        if not self.training:
            mined = self.miner(embeddings, labels) if self.miner is not None else None
            return self.loss(embeddings, labels, mined).reshape(())
        slots = self._remember(embeddings, labels)
        memory = self.memory[: int(self.seen)].to(embeddings.dtype)
        memory_labels = self.memory_labels[: int(self.seen)]
        itself = torch.zeros(len(labels), len(memory), dtype=torch.bool, device=labels.device)
        itself[torch.arange(len(labels), device=labels.device), slots] = True
        if self.miner is not None:
            mined = _without(itself, self.miner(embeddings, labels, memory, memory_labels))
        else:
            masks = PairMasks.of(labels, memory_labels)
            masks = PairMasks(masks.positives & ~itself, masks.negatives)
            mined = masks if isinstance(self.loss, MatrixForm) else masks.indices()
        return self.loss(embeddings, labels, mined, memory, memory_labels).reshape(())

    @torch.no_grad()
    def _remember(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Where the batch now lies in the memory, int64 [B]."""
        if len(labels) > self.memory_size:
            raise ValueError(f'memory_size is {self.memory_size}, which a batch of {len(labels)} items does not fit in')
        slots = (torch.arange(len(labels), device=labels.device) + self.seen) % self.memory_size
        self.memory[slots] = embeddings.detach().to(self.memory.dtype)
        self.memory_labels[slots] = labels
        self.seen += len(labels)
        return slots


def _without(itself: Tensor, mined: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The triplets (a, p, n) or pairs (a, p, a, n) whose positive is not the anchor."""
    keep = ~itself[mined[0], mined[1]]
    kept = tuple(indices[keep] for indices in mined[:2])
    return (*kept, *(indices if len(mined) == 4 else indices[keep] for indices in mined[2:]))
