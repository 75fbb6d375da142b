"""Small batches of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from training.losses import Objective

# options that these losses cannot do without
NEEDED: dict[str, dict] = {
    'CrossBatchMemory': {'loss': 'NTXentLoss'},
    'MatryoshkaLoss': {'loss': 'TripletMarginLoss', 'dims': [4, 8]},
    'MultipleLosses': {'losses': ['TripletMarginLoss', 'NTXentLoss']},
    'RankedListLoss': {'margin': 0.4, 'Tn': 1},
    'SelfSupervisedLoss': {'loss': 'NTXentLoss'},
}
COLUMNS = {'labelled': 1, 'pairs': 2, 'scored pairs': 2, 'triplets': 3}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers, the same for the same arguments."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(objective: Objective, rows: int = 12, size: int = 8, classes: int = 3) -> tuple[list[Tensor], Tensor, Tensor]:
    """Columns that want gradients, labels and scores for an objective."""
    columns = [normal(rows, size, seed=number).requires_grad_() for number in range(COLUMNS[objective.shape])]
    labels = torch.arange(rows) % classes
    labels[1] = 0  # classes of unequal sizes
    return columns, labels, torch.linspace(-1, 1, rows)


def outcome(objective: Objective, seed: int = 0, rows: int = 12) -> list[Tensor]:
    """The value and the gradients of one batch."""
    columns, labels, scores = batch(objective, rows)
    torch.manual_seed(seed)
    value = objective(columns, labels, scores)
    value.backward()
    return [value.detach(), *(column.grad for column in columns if column.grad is not None)]


def differ(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return any(not torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(one, two, strict=True))


@pytest.fixture(autouse=True)
def same_weights():
    """Losses draw their weights when they are made."""
    torch.manual_seed(0)
