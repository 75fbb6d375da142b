"""MatryoshkaLoss: embeddings that can be cut short."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.losses.objective import Objective


class MatryoshkaLoss(Objective):
    """Σ weight × loss of the first `dim` numbers of every embedding (Kusupati et al. 2022,
    https://arxiv.org/abs/2205.13147).

    :param objectives: one for every dim, with weights and memories of its own.
    :param dims: how many numbers each sees.
    :param weights: one for each, default 1.
    """

    def __init__(self, objectives: Sequence[Objective], dims: Sequence[int], weights: Sequence[float] | None = None):
        super().__init__()
        if weights is not None and len(weights) != len(dims):
            raise ValueError(f'there are {len(dims)} dims and {len(weights)} weights')
        self.shape = objectives[0].shape
        self.objectives, self.dims = nn.ModuleList(objectives), tuple(dims)
        self.weights = [1.0] * len(dims) if weights is None else [float(weight) for weight in weights]

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        total = columns[0].new_zeros(())
        for objective, dim, weight in zip(self.objectives, self.dims, self.weights, strict=True):
            total = total + weight * objective([column[:, :dim] for column in columns], labels, scores, keys)
        return total
