"""What is trained: encoders and the objective that their embeddings are to meet."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from finetuner.inference.encoder import Encoder
from training.losses.objective import Objective


class Task(nn.Module):
    """Encoders by name, and the objective, as one module: one state dict, one place to move or to compile.

    :param encoders: 'model' alone, or 'clip-text' and 'clip-vision'.
    :param objective: the loss, with weights of its own perhaps.
    """

    def __init__(self, encoders: Mapping[str, Encoder], objective: Objective):
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.objective = objective

    @property
    def by_name(self) -> dict[str, Encoder]:
        """The encoders as what they are."""
        return dict(self.encoders.items())  # type: ignore[arg-type]
