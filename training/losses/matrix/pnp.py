"""PNPLoss without a B³ tensor."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor

from training.losses.matrix.pairs import LossDict, PairMasks, over_pairs, reduced


class PNPLoss(losses.PNPLoss):
    """How many negatives are nearer to an anchor than each of its positives, smoothly counted, the count weighed as
    `variant` says (Li et al. 2021, https://arxiv.org/abs/2102.04640). An anchor with
    positives is one of them itself."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> LossDict:
        if indices_tuple is not None or ref_emb is not embeddings or labels is None:
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        masks = PairMasks.of(labels, labels)
        negatives, paired = masks.negatives, masks.positives.any(1)
        anchors, positives = (~negatives & paired[:, None]).nonzero(as_tuple=True)
        if not len(anchors):
            return self.zero_losses()
        similarities = self.distance(embeddings)

        def nearer(a: Tensor, p: Tensor) -> Tensor:
            differences = similarities[a] - similarities[a, p][:, None]
            return (self.sigmoid(differences, temp=self.anneal) * negatives[a]).sum(1)

        weighed = self._weigh(over_pairs(nearer, anchors, positives, len(embeddings)))
        share = (~negatives).sum(1).to(weighed.dtype).reciprocal()
        loss = (weighed * share[anchors]).sum() / paired.sum()
        return {'loss': reduced(1 - loss if self.variant == 'Dq' else loss)}

    def _weigh(self, count: Tensor) -> Tensor:
        if self.variant == 'Ds':
            return torch.log(1 + count)
        if self.variant == 'Dq':
            return (1 + count) ** -self.alpha
        if self.variant == 'Iu':
            return (1 + count) * torch.log(1 + count)
        if self.variant == 'Ib':
            return (self.b * count - torch.log(1 + self.b * count)) / self.b**2
        return count
