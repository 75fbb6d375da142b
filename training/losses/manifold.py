"""ManifoldLoss by labels."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import losses
from torch import Tensor


class ManifoldLoss(losses.ManifoldLoss):
    """Similarity by random walks over the items and K learned proxies, one for every meta-class (Aziere and Todorovic
    2019, Ensemble Deep Manifold Similarity Learning using Hard Proxies, CVPR).

    The meta-class of an item is its label modulo K: up to K classes have a proxy each, more share them.
    """

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any = None) -> Tensor:
        return super().forward(embeddings, indices_tuple=labels % self.K)
