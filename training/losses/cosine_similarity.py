"""CosineSimilarityLoss: pairs as similar as their scores say."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from training.losses.objective import Objective, Shape


class CosineSimilarityLoss(Objective):
    """The mean of (cos(a, b) − score)² (Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084)."""

    shape: Shape = 'scored pairs'

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        if scores is None:
            raise ValueError('CosineSimilarityLoss learns from scores, and there are none')
        one, two = columns
        return mse_loss(cosine_similarity(one, two), scores.to(one.dtype))
