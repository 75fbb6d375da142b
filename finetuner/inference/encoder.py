"""The contract that every model obeys, whatever library its backbone comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from finetuner.inference.layers import Dense
from finetuner.inference.preprocessing import Modality, Preprocessor


class Encoder(nn.Module, ABC):
    """Content to embeddings: a backbone, pooling, a head of dense layers (often none) and perhaps normalization.

    :param head: layers after pooling, a ModuleList of :class:`Dense`.
    :param normalize: scale embeddings to L2 norm 1.
    """

    modality: ClassVar[Modality]

    def __init__(self, head: list[Dense] | None = None, normalize: bool = False):
        super().__init__()
        self.head = nn.ModuleList(head or [])
        self.normalize = normalize

    @property
    @abstractmethod
    def preprocessor(self) -> Preprocessor:
        """What makes the inputs of `forward`."""

    @property
    @abstractmethod
    def input_names(self) -> list[str]:
        """The arguments of `forward`, in order; the inputs of the ONNX model have the same names."""

    @property
    @abstractmethod
    def backbone_dim(self) -> int:
        """The length of a pooled vector, before the head."""

    @abstractmethod
    def pooled(self, **inputs: Tensor) -> Tensor:
        """What comes before the head, float [B, backbone_dim]. The arguments are those of `input_names`."""

    @abstractmethod
    def layer_groups(self) -> list[nn.Module]:
        """The backbone's parts from the input to the output, each holding parameters that no other holds.

        Together they hold all parameters of the backbone. In a forward each is called once, one after the other, and
        takes what the one before gave as its first argument. Freezing, learning rates that decay by layer and the
        cache of frozen features go by this list.
        """

    @abstractmethod
    def save(self, directory: str | Path) -> Path:
        """Write a model directory that `load_encoder`, and the backbone's own library, open.

        :param directory: is made if it is not there; files of the same names in it are replaced.
        """

    @property
    def dim(self) -> int:
        """The length of an embedding."""
        return int(self.head[-1].linear.out_features) if len(self.head) else self.backbone_dim  # type: ignore

    def finish(self, pooled: Tensor) -> Tensor:
        """From pooled vectors to embeddings, float32 [B, dim]: head and normalization."""
        embeddings = pooled.float()
        for layer in self.head:
            embeddings = layer(embeddings).float()
        return nn.functional.normalize(embeddings, dim=-1) if self.normalize else embeddings

    def forward(self, **inputs: Tensor) -> Tensor:
        """Embed one batch, float32 [B, dim]."""
        return self.finish(self.pooled(**inputs))

    def add_head(self, output_dim: int) -> None:
        """Replace the head by a new projection of three layers, with weights at random.

        :param output_dim: the length of the embeddings from now on.
        """
        width = self.backbone_dim
        self.head = nn.ModuleList(
            [
                Dense(width, width, activation='ReLU'),
                Dense(width, width, activation='ReLU'),
                Dense(width, output_dim, activation='Identity'),
            ]
        ).to(next(self.parameters()).device)
