"""HistogramLoss without lists of triplets."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import losses
from torch import Tensor

from training.losses.matrix.pairs import LossDict, PairMasks, reduced


class HistogramLoss(losses.HistogramLoss):
    """The probability that a negative pair is more similar than a positive one, from histograms with linear
    interpolation (Ustinova and Lempitsky 2016, https://arxiv.org/abs/1611.00822)."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> LossDict:
        if indices_tuple is not None or ref_emb is not embeddings or labels is None:
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        masks = PairMasks.of(labels, labels)
        # the library takes the pairs from triplets: a negative pair counts if one of its items has a positive
        paired = masks.positives.any(1)
        positives = masks.positives.triu(1)
        negatives = (masks.negatives & (paired[:, None] | paired)).triu(1)
        if not positives.any() or not negatives.any():
            return self.zero_losses()
        similarities = self.distance(embeddings)
        below = self.compute_density(similarities[positives]).cumsum(0)
        return {'loss': reduced((self.compute_density(similarities[negatives]) * below).sum())}

    def compute_density(self, distances: Tensor) -> Tensor:
        """Shares of the similarities around each of the bins' edges, [bins + 1].

        The library has no bin for a similarity of 1, which equal items have.
        """
        bins = round(2 / self.delta)
        place = (distances + 1) / self.delta
        low = place.detach().floor().clamp(0, bins - 1)
        density = distances.new_zeros(bins + 1)
        density = density.scatter_add(0, low.long() + 1, place - low)
        return density.scatter_add(0, low.long(), low + 1 - place) / len(distances)
