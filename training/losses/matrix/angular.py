"""AngularLoss without all positive by all negative pairs at once."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_pairs
from torch import Tensor

from training.losses.matrix.pairs import LossDict, PairMasks, over_pairs, pair_losses


class AngularLoss(losses.AngularLoss):
    """log(1 + Σ_n exp(4 tan²α (a + p)·n − 2 (1 + tan²α) a·p)) for every positive pair (Wang et al. 2017,
    https://arxiv.org/abs/1708.01682). As in the library, a and p are scaled to length 1 and n is not."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> LossDict:
        if isinstance(indices_tuple, PairMasks):
            indices_tuple = indices_tuple.indices()
        if ref_emb is not embeddings or labels is None:
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        masks = PairMasks.of(labels, labels)
        anchors, positives = masks.positives.nonzero(as_tuple=True)
        any_negative = bool(masks.negatives.any())
        if indices_tuple is not None:
            # a miner chooses the positive pairs; the negatives of each are all there are, in the library too
            anchors, positives, _, negatives = convert_to_pairs(indices_tuple, labels)
            any_negative = len(negatives) > 0
        if not len(anchors) or not any_negative:
            return self.zero_losses()
        unit = self.distance.normalize(embeddings)
        squared = float(torch.tan(self.alpha) ** 2)
        outward, inward = 4 * squared * unit @ embeddings.T, 2 * (1 + squared) * unit @ unit.T
        zero = embeddings.new_zeros(())
        lowest = torch.finfo(embeddings.dtype).min

        def losses_of(a: Tensor, p: Tensor) -> Tensor:
            exponents = (outward[a] + outward[p]).masked_fill(~masks.negatives[a], lowest)
            return torch.logaddexp(exponents.logsumexp(1) - inward[a, p], zero)

        return pair_losses(over_pairs(losses_of, anchors, positives, len(embeddings)), anchors, positives)
