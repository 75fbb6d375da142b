"""The contract of every objective: embeddings in, one number out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Shape = Literal['labelled', 'pairs', 'scored pairs', 'triplets']


class Objective(nn.Module):
    """A loss over the embeddings of a batch.

    ============== ======================================== ===========================================
    shape          columns                                  beside them
    ============== ======================================== ===========================================
    labelled       any number, all items carry a label      labels
    pairs          anchors, positives                       labels: rows of one label are no negatives
    scored pairs   two, in any order                        scores: how similar they are
    triplets       queries, positives, negatives            scores: by how much the positive is nearer, or how
                                                            much the triplet counts, as the loss says
    ============== ======================================== ===========================================
    """

    shape: Shape

    def forward(
        self,
        columns: Sequence[Tensor],
        labels: Tensor | None = None,
        scores: Tensor | None = None,
        keys: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The loss of a batch, float32 scalar.

        :param columns: embeddings, float32 [B, D] each; row i of every column is example i.
        :param labels: class or group of every example, int64 [B].
        :param scores: float32 [B].
        :param keys: one int64 [B] for every column: items of equal keys have equal content.
        """
        raise NotImplementedError(type(self).__name__)
