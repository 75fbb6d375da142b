"""MultipleLosses: a weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.losses.objective import Objective, Shape


class MultipleLosses(Objective):
    """Σ weight × loss, over one batch.

    :param objectives: all of one shape; those that learn from labels go with those that learn from pairs, which have
        the labels of their groups.
    :param weights: one for each, default 1.
    """

    def __init__(self, objectives: Sequence[Objective], weights: Sequence[float] | None = None):
        super().__init__()
        if weights is not None and len(weights) != len(objectives):
            raise ValueError(f'there are {len(objectives)} losses and {len(weights)} weights')
        self.shape = common_shape([objective.shape for objective in objectives])
        self.objectives = nn.ModuleList(objectives)
        self.weights = [1.0] * len(objectives) if weights is None else [float(weight) for weight in weights]

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        total = columns[0].new_zeros(())
        for objective, weight in zip(self.objectives, self.weights, strict=True):
            total = total + weight * objective(columns, labels, scores, keys)
        return total


def common_shape(shapes: Sequence[Shape]) -> Shape:
    """The shape of data that all learn from.

    :raises ValueError: there is none.
    """
    if not shapes:
        raise ValueError('losses is empty')
    found = set(shapes)
    if found == {'labelled', 'pairs'}:
        return 'pairs'
    if len(found) > 1:
        raise ValueError(f'the losses learn from different data: {" and ".join(sorted(found))}')
    return shapes[0]
