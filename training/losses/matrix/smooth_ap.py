"""SmoothAPLoss without a B³ tensor, for classes of any size in any order."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_weights
from torch import Tensor

from training.losses.matrix.pairs import LossDict, element_losses, over_pairs


class SmoothAPLoss(losses.SmoothAPLoss):
    """1 − the mean over an anchor's positives of their rank among the positives over their rank among all, ranks
    counted by sigmoids (Brown et al. 2020, https://arxiv.org/abs/2007.12163). An anchor is a positive of itself.

    Equal to the library's where that finds the positives: it cuts the batch into runs as long as the number of
    classes, and so needs as many items in a class as there are classes, class by class.
    """

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> LossDict:
        if ref_emb is not embeddings or labels is None:
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        same = labels[:, None] == labels
        similarities = self.distance(embeddings) / self.temperature
        anchors, positives = same.nonzero(as_tuple=True)

        def ratios(a: Tensor, p: Tensor) -> Tensor:
            nearer = (similarities[a] - similarities[a, p][:, None]).sigmoid()
            # an item does not stand before itself, but σ(0) = 1/2 was added for it
            return ((nearer * same[a]).sum(1) + 0.5) / (nearer.sum(1) + 0.5)

        precision = similarities.new_zeros(len(similarities))
        precision = precision.index_add(0, anchors, over_pairs(ratios, anchors, positives, len(same))) / same.sum(1)
        weights = convert_to_weights(indices_tuple, labels, dtype=precision.dtype)
        return {'ap_loss': element_losses((1 - precision) * weights)['loss']}
