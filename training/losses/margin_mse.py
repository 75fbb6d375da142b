"""MarginMSELoss: a teacher's margins."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from training.losses.objective import Objective, Shape
from training.losses.options import one_of


class MarginMSELoss(Objective):
    """The mean of (s(q, p) − s(q, n) − score)², the score a teacher's s(q, p) − s(q, n) (Hofstätter et al. 2020,
    https://arxiv.org/abs/2010.02666).

    :param similarity: s, 'dot' or 'cosine'. Teachers' margins are often above 2, where cosines do not reach.
    """

    shape: Shape = 'triplets'

    def __init__(self, similarity: str = 'dot'):
        super().__init__()
        self.similarity = one_of('similarity', similarity, ('dot', 'cosine'))

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        if scores is None:
            raise ValueError('MarginMSELoss learns from scores, and there are none')
        query, positive, negative = columns
        if self.similarity == 'cosine':
            margin = cosine_similarity(query, positive) - cosine_similarity(query, negative)
        else:
            margin = (query * (positive - negative)).sum(1)
        return mse_loss(margin, scores.to(margin.dtype))
