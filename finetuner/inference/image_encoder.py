"""The image model: a backbone of torchvision or timm without its classifier, pooling, and perhaps a head."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from finetuner.inference.augmentation import augment_images
from finetuner.inference.description import has_description, read_description, write_description
from finetuner.inference.encoder import Encoder
from finetuner.inference.head import describe_head, load_head, save_head
from finetuner.inference.images import ImagePreprocessor, ImageSettings, pair
from finetuner.inference.layers import Dense
from finetuner.inference.layout import check_pooling
from finetuner.inference.preprocessing import Modality
from finetuner.inference.stages import OWN, Stage, run


class ImageBackbone(Protocol):
    """A model of some library: `model` without its classifier, and what has to be known about it."""

    library: str
    architecture: str
    model: nn.Module
    settings: ImageSettings
    dim: int
    poolings: tuple[str, ...]
    default_pooling: str

    def stages(self, pooling: str, options: Mapping[str, float], split: bool = True) -> list[Stage]:
        """From scaled pixels, float [B, 3, H, W], to pooled vectors [B, dim]; only the last may lack parameters."""
        ...

    def save(self, directory: Path, pooling: str, options: Mapping[str, float]) -> None:
        """Write the files of the library."""
        ...


class ImageEncoder(Encoder):
    """Pixels in, embeddings out.

    :param source: of torchvision or timm.
    :param pooling: `mean`, `max`, `gem`, `cls` where there is a class token, or `own`, the one that timm has; None is
        the model's default.
    :param pooling_options: `p` and `eps` of `gem`.
    :param augment: in training, give the model random crops of the images, half of them mirrored.
    :raises ValueError: the model cannot be pooled that way.
    """

    modality: ClassVar[Modality] = 'image'
    _scale: Tensor
    _shift: Tensor

    def __init__(
        self,
        source: ImageBackbone,
        *,
        pooling: str | None = None,
        pooling_options: Mapping[str, Any] | None = None,
        head: list[Dense] | None = None,
        normalize: bool = False,
        augment: bool = False,
    ):
        super().__init__(head, normalize)
        pooling = pooling or source.default_pooling
        is_own = pooling.lower() == OWN
        self.pooling, self.pooling_options = (OWN, {}) if is_own else check_pooling(pooling, pooling_options)
        if self.pooling not in source.poolings:
            known = ', '.join(source.poolings)
            raise ValueError(f'{source.architecture} cannot be pooled by {self.pooling!r}: it is one of {known}')
        self.backbone = source.model
        self.augment = augment
        self._source = source
        self._stages = source.stages(self.pooling, self.pooling_options, split=False)
        self._is_split = False
        mean, std = torch.tensor(source.settings.mean), torch.tensor(source.settings.std)
        # (pixels / 255 - mean) / std as one multiplication and one addition
        self.register_buffer('_scale', 1 / (255 * std), persistent=False)
        self.register_buffer('_shift', -mean / std, persistent=False)

    @classmethod
    def load(
        cls,
        directory_or_name: str | Path,
        *,
        pooling: str | None = None,
        pooling_options: Mapping[str, Any] | None = None,
        weights: str | Path | None = None,
        pretrained: bool = True,
        augment: bool = False,
        preprocess_options: Mapping[str, Any] | None = None,
    ) -> ImageEncoder:
        """Read a directory that :meth:`save` or timm wrote, or a model by name.

        :param directory_or_name: a name of torchvision (`resnet50`), of timm (`timm/vit_tiny_patch16_224`, or without
            `timm/` where torchvision has none of this name), or a repository of timm models on the hub (`org/name`).
        :param pooling: overrides the directory's.
        :param weights: a file with a state dict for the model of this name, safetensors or torch's own, or one of
            torchvision's names for weights (`IMAGENET1K_V2`).
        :param pretrained: False is weights at random, by torch's seed; of names only.
        :param preprocess_options: changes to the model's :class:`ImageSettings`, such as `{'size': 160}`.
        :raises ValueError: the model or its weights are not to be found, or an option is unknown or does not fit.
        """
        name, changes = str(directory_or_name), dict(preprocess_options or {})
        directory = Path(directory_or_name).expanduser()
        head: list[Dense] = []
        normalize = False
        source: ImageBackbone
        if directory.is_dir():
            if weights is not None:
                raise ValueError(f'{name} has weights of its own: leave the model option weights out')
            if not pretrained:
                raise ValueError(f'{name} is a directory with weights: for random ones, name the model instead of it')
            description = read_description(directory) if has_description(directory) else None
            source = _open(directory, description)
            if description is not None:
                head, normalize = load_head(description.get('head') or [], directory), bool(description['normalize'])
                if pooling is None:
                    pooling = str(description['pooling'])
                    pooling_options = pooling_options or description['pooling_options']
        else:
            size = pair('size', changes['size'])[0] if 'size' in changes else None
            source = _load(name, None if weights is None else str(weights), pretrained, size)
        source.settings = source.settings.changed(changes)
        return cls(
            source,
            pooling=pooling,
            pooling_options=pooling_options,
            head=head,
            normalize=normalize,
            augment=augment,
        ).eval()

    @property
    def preprocessor(self) -> ImagePreprocessor:
        return ImagePreprocessor(self._source.settings)

    @property
    def input_names(self) -> list[str]:
        return ['pixels']

    @property
    def backbone_dim(self) -> int:
        return self._source.dim

    def pooled(self, pixels: Tensor) -> Tensor:  # type: ignore[override]
        """:param pixels: uint8 [B, H, W, 3]."""
        # a view: in memory the channels stay last, which is also how convolutions are fastest
        images = (pixels.float() * self._scale + self._shift).permute(0, 3, 1, 2)
        if self.augment and self.training:
            images = augment_images(images)
        return run(self._stages, images)

    def layer_groups(self) -> list[nn.Module]:
        if not self._is_split:
            self._stages = self._source.stages(self.pooling, self.pooling_options)
            self._is_split = True
        for stage in self._stages:
            stage.refresh()
        return [stage for stage in self._stages if stage.has_parameters()]

    def save(self, directory: str | Path) -> Path:
        """Write `encoder.json`, the head, and what the library itself opens.

        timm: `timm.create_model('local-dir:<directory>', pretrained=True)` gives the pooled vectors (without GeM, which
        timm does not have). torchvision: `model.safetensors` is the state dict of
        `torchvision.models.get_model(<architecture>)`, with the classifier as it was before training.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._source.save(directory, self.pooling, self.pooling_options)
        save_head(self.head, directory)
        write_description(
            directory,
            library=self._source.library,
            modality=self.modality,
            dim=self.dim,
            normalize=self.normalize,
            architecture=self._source.architecture,
            pooling=self.pooling,
            pooling_options=self.pooling_options,
            preprocess=self._source.settings.to_dict(),
            head=describe_head(self.head),
        )
        return directory


def _open(directory: Path, description: Mapping[str, Any] | None) -> ImageBackbone:
    if description is not None and description['library'] == 'torchvision':
        from finetuner.inference.torchvision_models import TorchvisionBackbone

        return TorchvisionBackbone.open(directory, description)
    from finetuner.inference.timm_models import TimmBackbone

    return TimmBackbone.open(directory, description)


def find_image_model(name: str) -> tuple[Literal['torchvision', 'timm'], str] | None:
    """The library that has an image model of a name, and the name it has there; None if neither has.

    :param name: see :meth:`ImageEncoder.load`.
    """
    if name.startswith('hf-hub:'):
        return 'timm', name
    if importlib.util.find_spec('torchvision') and '/' not in name:
        from finetuner.inference import torchvision_models

        if torchvision_models.has_model(name):
            return 'torchvision', name
    if importlib.util.find_spec('timm'):
        from finetuner.inference import timm_models

        if timm_models.has_model(name.removeprefix('timm/')):
            return 'timm', name.removeprefix('timm/')
    return None


def _load(name: str, weights: str | None, pretrained: bool, size: int | None) -> ImageBackbone:
    found = find_image_model(name)
    if found is None:
        raise ValueError(f'neither torchvision nor timm has an image model {name!r}')
    library, name = found
    if library == 'torchvision':
        from finetuner.inference.torchvision_models import TorchvisionBackbone

        return TorchvisionBackbone.load(name, weights, pretrained, size)
    from finetuner.inference.timm_models import TimmBackbone

    return TimmBackbone.load(name, weights, pretrained, size)
