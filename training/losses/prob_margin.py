"""ProbMarginRankingLoss and CosineProbMarginRankingLoss: clicked before not clicked, weighted by confidence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import cosine_similarity

from training.losses.objective import Objective, Shape
from training.losses.options import one_of, positive


class ProbMarginRankingLoss(Objective):
    """The mean of c·σ(d), d = m − t(p − n): p and n are how near the positive and the negative are to the query, t is 1
    for similarities and −1 for distances, c the score of the triplet: its confidence or weight, 1 without scores.

    :param margin: m, a number from 0 on.
    :param similarity: 'cosine', 'dot', or 'euclidean', which is a distance.
    :param fine_small_difference: add Σ(|x|w) / (Σw + 1e-10), x = p − n and w = σ(⌊100 / m⌋(m − |x|)), which needs a
        margin above 0.
    :param min_difference: leave out the triplets with |x| at or below it, as far as they are; None for none.
    :param max_difference: leave out the triplets with |x| at or above it; None for none.
    """

    shape: Shape = 'triplets'

    def __init__(
        self,
        margin: float = 1.0,
        similarity: str = 'cosine',
        fine_small_difference: bool = False,
        min_difference: float | None = None,
        max_difference: float | None = None,
    ):
        super().__init__()
        self.margin = 0.0 if margin == 0 and not isinstance(margin, bool) else positive('margin', margin)
        self.similarity = one_of('similarity', similarity, ('cosine', 'dot', 'euclidean'))
        self.fine_small_difference = one_of('fine_small_difference', fine_small_difference, (True, False))
        if self.fine_small_difference and not self.margin:
            raise ValueError('margin is 0: fine_small_difference needs one above 0')
        self.min_difference = -1.0 if min_difference is None else float(min_difference)
        self.max_difference = float('inf') if max_difference is None else positive('max_difference', max_difference)
        if self.min_difference >= self.max_difference:
            raise ValueError(f'min_difference {min_difference} is not below max_difference {max_difference}')

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        query, nearer, farther = columns
        difference = self._nearness(query, nearer) - self._nearness(query, farther)
        size = difference.detach().abs()
        kept = (size > self.min_difference) & (size < self.max_difference)
        if not bool(kept.any()):
            return difference.sum() * 0
        difference = difference[kept]
        sign = -1 if self.similarity == 'euclidean' else 1
        terms = self._probability(self.margin - sign * difference)
        if scores is not None:
            terms = terms * scores.to(terms.dtype)[kept]
        return terms.mean() + self._fine(difference) if self.fine_small_difference else terms.mean()

    def _probability(self, violation: Tensor) -> Tensor:
        return violation.sigmoid()

    def _fine(self, difference: Tensor) -> Tensor:
        weights = (int(100 / self.margin) * (self.margin - difference.abs())).sigmoid()
        return (difference.abs() * weights).sum() / (weights.sum() + 1e-10)

    def _nearness(self, query: Tensor, item: Tensor) -> Tensor:
        if self.similarity == 'cosine':
            return cosine_similarity(query, item)
        return (query * item).sum(1) if self.similarity == 'dot' else (query - item).norm(dim=1)


class CosineProbMarginRankingLoss(ProbMarginRankingLoss):
    """The mean of c·σ(400d − 6): steep within the small differences that cosines have. See `ProbMarginRankingLoss`.

    :param margin: m, in cosines.
    """

    def __init__(
        self,
        margin: float = 0.025,
        similarity: str = 'cosine',
        fine_small_difference: bool = False,
        min_difference: float | None = None,
        max_difference: float | None = None,
    ):
        super().__init__(margin, similarity, fine_small_difference, min_difference, max_difference)

    def _probability(self, violation: Tensor) -> Tensor:
        return (400 * violation - 6).sigmoid()
