"""The two encoders of a CLIP model, whatever library the model comes from.

A tower is one side of the model as a chain of modules: one that embeds the input, blocks, one that pools and projects.
They are the library's own modules and parameters, put in a row, so that what training does to a tower is done to the
library's model, which can then be saved as a whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from finetuner.inference.augmentation import augment_images
from finetuner.inference.clip_tokens import ClipTextPreprocessor
from finetuner.inference.description import write_description
from finetuner.inference.encoder import Encoder
from finetuner.inference.head import describe_head, save_head
from finetuner.inference.images import ImagePreprocessor
from finetuner.inference.layers import Dense
from finetuner.inference.preprocessing import Modality

TEXT, VISION = 'clip-text', 'clip-vision'
SHARED = 'clip'  # the folder beside those of the two models


class Tower(nn.Module):
    """One side of a model: `start`, the blocks one after the other, `end`.

    :param dim: the length of what comes out.
    """

    def __init__(self, start: nn.Module, blocks: Iterable[nn.Module], end: nn.Module, dim: int):
        super().__init__()
        self.start = start
        self.blocks = nn.ModuleList(blocks)
        self.end = end
        self.dim = dim

    def groups(self) -> list[nn.Module]:
        return [part for part in (self.start, *self.blocks, self.end) if any(True for _ in part.parameters())]

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed a batch.

        :param inputs: token ids, int64 [B, T]; or pixels, scaled and normalized, float32 [B, 3, H, W].
        :return: float [B, dim].
        """
        hidden = self.start(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        return self.end(hidden)


class ClipModel(ABC):
    """A whole model of a library: both towers, the scale of the logits, tokenizer and image settings.

    :param model: as the library builds it.
    """

    library: ClassVar[Literal['transformers-clip', 'open_clip']]

    def __init__(self, model: Any):
        self.model = model

    @abstractmethod
    def text_tower(self) -> Tower: ...

    @abstractmethod
    def vision_tower(self) -> Tower: ...

    @abstractmethod
    def text_preprocessor(self, max_length: int | None = None) -> ClipTextPreprocessor:
        """:param max_length: None is the longest that the model can take.
        :raises ValueError: the model cannot take texts of this length.
        """

    @abstractmethod
    def image_preprocessor(self) -> ImagePreprocessor: ...

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write a directory that the library opens: weights, configuration, tokenizer and image settings."""

    @property
    def logit_scale(self) -> nn.Parameter:
        """The logarithm of what similarities are multiplied by, scalar or [1]."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """What is added then, scalar or [1]; None for models that were trained with a softmax."""
        return getattr(self.model, 'logit_bias', None)


class ClipEncoder(Encoder):
    """One side of a model.

    :param whole: the model, which the encoder of the other side has too; None leaves it away, and :meth:`save` with it.
    """

    name: ClassVar[str]

    def __init__(self, tower: Tower, whole: ClipModel | None, head: list[Dense] | None = None, normalize: bool = False):
        super().__init__(head, normalize)
        self.tower = tower
        # no Module, so that its other side is no part of this encoder
        self.whole = whole

    @property
    def backbone_dim(self) -> int:
        return self.tower.dim

    def layer_groups(self) -> list[nn.Module]:
        return self.tower.groups()

    def save(self, directory: str | Path) -> Path:
        """Write what is this encoder's own to `directory`, and the library's model of both to `clip` beside it.

        To save both sides, `save_clip` writes that model once. `load_encoder` opens `directory`, and the library opens
        `clip`.

        :raises ValueError: the encoder was loaded alone, without the other side.
        """
        directory = Path(directory)
        self.check_whole().save(directory.parent / SHARED)
        return self.save_own(directory)

    def check_whole(self) -> ClipModel:
        """:raises ValueError: the encoder was loaded alone, without the other side."""
        if self.whole is None:
            raise ValueError(f'{self.name} was loaded alone: to save it, load both sides with load_clip')
        return self.whole

    def save_own(self, directory: Path) -> Path:
        """Write all but the weights of the tower."""
        directory.mkdir(parents=True, exist_ok=True)
        save_head(self.head, directory)
        write_description(
            directory,
            library=self.check_whole().library,
            modality=self.modality,
            dim=self.dim,
            normalize=self.normalize,
            head=describe_head(self.head),
            preprocess=self._save_preprocessor(directory),
        )
        return directory

    @abstractmethod
    def _save_preprocessor(self, directory: Path) -> dict[str, object]:
        """Write its files, and return its settings."""


class ClipTextEncoder(ClipEncoder):
    """Token ids to embeddings."""

    modality: ClassVar[Modality] = 'text'
    name = TEXT

    def __init__(
        self,
        tower: Tower,
        whole: ClipModel | None,
        preprocessor: ClipTextPreprocessor,
        head: list[Dense] | None = None,
        normalize: bool = False,
    ):
        super().__init__(tower, whole, head, normalize)
        self._preprocessor = preprocessor

    @property
    def preprocessor(self) -> ClipTextPreprocessor:
        return self._preprocessor

    @property
    def max_length(self) -> int:
        """The longest text in tokens, special ones included; the rest is cut off."""
        return self._preprocessor.max_length

    @property
    def input_names(self) -> list[str]:
        return ['input_ids', 'attention_mask']

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # type: ignore[override]
        """:param input_ids: int64 [B, T].
        :param attention_mask: int64 [B, T], 1 for a token and 0 for padding.
        """
        return self.tower(torch.where(attention_mask == 1, input_ids, self._preprocessor.pad_id))

    def _save_preprocessor(self, directory: Path) -> dict[str, object]:
        self._preprocessor.save(directory)
        return self._preprocessor.settings


class ClipVisionEncoder(ClipEncoder):
    """Pixels to embeddings.

    :param augment: in training, give the model random crops of the images, half of them mirrored.
    """

    modality: ClassVar[Modality] = 'image'
    name = VISION

    def __init__(
        self,
        tower: Tower,
        whole: ClipModel | None,
        preprocessor: ImagePreprocessor,
        head: list[Dense] | None = None,
        normalize: bool = False,
        augment: bool = False,
    ):
        super().__init__(tower, whole, head, normalize)
        self._preprocessor = preprocessor
        self.augment = augment
        settings = preprocessor.settings
        mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
        # (pixels / 255 - mean) / std as one multiplication and one addition
        self.register_buffer('_scale', 1 / (255 * std), persistent=False)
        self.register_buffer('_shift', -mean / std, persistent=False)

    @property
    def preprocessor(self) -> ImagePreprocessor:
        return self._preprocessor

    @property
    def input_names(self) -> list[str]:
        return ['pixels']

    def pooled(self, pixels: Tensor) -> Tensor:  # type: ignore[override]
        """:param pixels: uint8 [B, H, W, 3]."""
        # a view: in memory the channels stay last, which is also how convolutions are fastest
        images = (pixels.float() * self._scale + self._shift).permute(0, 3, 1, 2)  # type: ignore[operator]
        if self.augment and self.training:
            images = augment_images(images)
        return self.tower(images)

    def _save_preprocessor(self, directory: Path) -> dict[str, object]:
        return self._preprocessor.settings.to_dict()


def causal_mask(length: int, device: torch.device) -> Tensor:
    """True where a token sees another, bool [length, length]: itself and what came before."""
    positions = torch.arange(length, device=device)
    return positions[:, None] >= positions[None, :]


def take_tokens(hidden: Tensor, positions: Tensor) -> Tensor:
    """One token of each text, [B, D].

    :param hidden: [B, T, D].
    :param positions: int [B].
    """
    return hidden.gather(1, positions.long()[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
