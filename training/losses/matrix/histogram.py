"""HistogramLoss without lists of triplets."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_triplets
from torch import Tensor

from training.losses.matrix.pairs import LossDict, PairMasks, reduced


class HistogramLoss(losses.HistogramLoss):
    """The probability that a negative pair is more similar than a positive one, from histograms with linear
    interpolation (Ustinova and Lempitsky 2016, https://arxiv.org/abs/1611.00822)."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> LossDict:
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        # the library takes the pairs from triplets: a negative pair counts if one of its items has a positive
        if indices_tuple is None:
            masks = PairMasks.of(labels, labels)
            positives, negatives = masks.positives, masks.negatives & masks.positives.any(1, keepdim=True)
        elif len(indices_tuple) == 4:
            a1, p, a2, n = indices_tuple
            positives = torch.zeros(len(labels), len(labels), dtype=torch.bool, device=labels.device)
            negatives = torch.zeros_like(positives)
            positives[a1, p] = negatives[a2, n] = True
            both = positives.any(1, keepdim=True) & negatives.any(1, keepdim=True)
            positives, negatives = positives & both, negatives & both
        else:
            anchors, near, far = convert_to_triplets(indices_tuple, labels, t_per_anchor='all')
            positives = torch.zeros(len(labels), len(labels), dtype=torch.bool, device=labels.device)
            negatives = torch.zeros_like(positives)
            positives[anchors, near] = negatives[anchors, far] = True
        positives, negatives = (positives | positives.T).triu(1), (negatives | negatives.T).triu(1)
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
