"""The image models of torchvision, as chains of stages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetuner.inference.images import ImageSettings
from finetuner.inference.layers import pool
from finetuner.inference.layout import find_weights
from finetuner.inference.stages import Stage, expand, group

LIBRARY = 'torchvision'

_CLASSIFIERS = ('classifier', 'fc', 'heads', 'head')
# models that are chains from here to there; what comes first and is found in the model counts
_CHAINS = (
    ('features', 'norm'),
    ('features',),
    ('conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4'),
    ('stem', 'trunk_output'),
    ('stem', 'blocks'),
    ('conv1', 'maxpool', 'stage2', 'stage3', 'stage4', 'conv5'),
)


class TorchvisionBackbone:
    """A model of torchvision without its classifier, whose weights are kept aside and saved again.

    :param architecture: the model's name in torchvision.
    :param model: the whole model; the classifier is taken out of it.
    :param settings: how it wants its images.
    :raises ValueError: the model is not a chain.
    """

    library = LIBRARY

    def __init__(self, architecture: str, model: nn.Module, settings: ImageSettings):
        self.architecture = architecture
        self.model = model
        self.settings = settings
        whole = model.state_dict()
        self.dim = _width(model)
        self._tail = _remove_classifier(model)
        self._features, self._layout = _find_stages(model, architecture)
        kept = model.state_dict()
        self._classifier = {name: tensor for name, tensor in whole.items() if name not in kept}
        self.default_pooling = 'cls' if self._layout == 'tokens' else 'mean'
        self.poolings: tuple[str, ...] = ('mean', 'max', 'gem', *['cls'] * (self._layout == 'tokens'))

    @classmethod
    def load(
        cls, architecture: str, weights: str | None = None, pretrained: bool = True, size: int | None = None
    ) -> TorchvisionBackbone:
        """:param weights: a file with a state dict, or one of the names torchvision has for the model's weights.
        :param pretrained: False is weights at random, by torch's seed.
        :param size: height and width of the images, for models that take one size only.
        :raises ValueError: the model or the weights are not there or do not fit each other.
        """
        try:
            enum = torchvision.models.get_model_weights(architecture)
        except ValueError as error:
            raise ValueError(f'torchvision has no model {architecture!r}') from error
        is_file = weights is not None and weights not in enum.__members__
        # the first are what `pretrained=True` meant
        entry = enum[weights] if weights is not None and not is_file else next(iter(enum))
        state = None
        if is_file:
            assert weights is not None
            state = read_weights(Path(weights).expanduser())
        elif pretrained or weights is not None:
            state = _download(architecture, entry)
        model = _build(architecture, size)
        if state is not None:
            _load_state(model, state, weights or entry.name)
        return cls(architecture, model, _settings(entry.transforms()))

    @classmethod
    def open(cls, directory: Path, description: Mapping[str, Any]) -> TorchvisionBackbone:
        """Read what :meth:`save` wrote.

        :param description: `encoder.json` of the directory.
        """
        settings = ImageSettings.from_dict(description['preprocess'])
        architecture = str(description['architecture'])
        model = _build(architecture, settings.size[0])
        _load_state(model, load_file(find_weights(directory)), str(directory))
        return cls(architecture, model, settings)

    def stages(self, pooling: str, options: Mapping[str, float], split: bool = True) -> list[Stage]:
        """From scaled pixels, float [B, 3, H, W], to pooled vectors [B, dim].

        :param pooling: one of `poolings`.
        :param split: has no effect: the model is always a chain.
        """

        def finish(model: Any, features: Tensor) -> Tensor:
            pooled = pool(self._tokens(features, pooling), None, pooling, options)
            return self._after(model, pooled)

        return [*self._features, Stage(self.model, self._tail, call=finish)]

    def save(self, directory: Path, pooling: str, options: Mapping[str, float]) -> None:
        """Write `model.safetensors`: torchvision's own state dict, with the classifier as it was before."""
        state = {**self.model.state_dict(), **self._classifier}
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
            directory / 'model.safetensors',
        )

    def _tokens(self, features: Tensor, pooling: str) -> Tensor:
        """Features as [B, T, D]."""
        if self._layout == 'tokens':
            return features if pooling == 'cls' else features[:, 1:]
        if self._layout == 'channels last':
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)

    def _after(self, model: Any, pooled: Tensor) -> Tensor:
        if not self._tail:
            return pooled
        return model.classifier(pooled[:, :, None, None]).flatten(1)


def has_model(name: str) -> bool:
    """Whether torchvision knows an image classifier of this name."""
    return name in torchvision.models.list_models(module=torchvision.models)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a file, safetensors or torch's own format; no code in it is ever run.

    :raises ValueError: it is not there, or holds something else.
    """
    if not path.is_file():
        raise ValueError(f'the file of weights {str(path)!r} does not exist')
    try:
        if path.suffix == '.safetensors':
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # several kinds, all of them meaning the same
        raise ValueError(f'{path} cannot be read as weights: {error}') from error
    for key in ('state_dict', 'model'):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f'{path} holds no state dict')
    return {str(name).removeprefix('module.'): tensor for name, tensor in state.items()}


def _build(architecture: str, size: int | None) -> nn.Module:
    options: dict[str, Any] = {'image_size': size} if size and architecture.startswith('vit_') else {}
    if architecture in ('googlenet', 'inception_v3'):
        raise ValueError(f"torchvision's {architecture} is not supported: use timm's 'timm/inception_v3'")
    try:
        return torchvision.models.get_model(architecture, weights=None, **options)
    except ValueError as error:
        raise ValueError(f'torchvision cannot build the model {architecture!r}: {error}') from error


def _download(architecture: str, entry: Any) -> dict[str, Tensor]:
    try:
        return dict(entry.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except OSError as error:
        raise ValueError(
            f'the weights of {architecture} cannot be fetched from {entry.url}: {error}. Without a network, give a '
            "file by model_options={'weights': ...}, or start from random weights with {'pretrained': False}"
        ) from error


def _load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights; a classifier that is missing or of other classes is left as it is."""
    expected = model.state_dict()
    state = dict(state)
    for name in list(state):
        if name.partition('.')[0] in _CLASSIFIERS and name in expected and state[name].shape != expected[name].shape:
            del state[name]
    missing = [name for name in expected if name not in state and name.partition('.')[0] not in _CLASSIFIERS]
    unknown = [name for name in state if name not in expected]
    wrong = [name for name in state if name in expected and state[name].shape != expected[name].shape]
    for names, what in ((missing, 'has no'), (unknown, 'has an unknown'), (wrong, 'has another shape of')):
        if names:
            more = f' and {len(names) - 1} more' if len(names) > 1 else ''
            raise ValueError(f'{source} does not fit {type(model).__name__}: it {what} {names[0]}{more}')
    model.load_state_dict(state, strict=False)


def _settings(transforms: Any) -> ImageSettings:
    return ImageSettings(
        size=transforms.crop_size[0],
        resize_size=transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _remove_classifier(model: nn.Module) -> list[str]:
    """Take the classifier out; return the names of modules of it that stay."""
    for name in _CLASSIFIERS:
        classifier = getattr(model, name, None)
        if classifier is None:
            continue
        if isinstance(classifier, nn.Sequential) and isinstance(classifier[0], nn.LayerNorm):
            setattr(model, name, classifier[:1])
            return [name]
        setattr(model, name, nn.Identity())
        return []
    return []


def _find_stages(model: nn.Module, architecture: str) -> tuple[list[Stage], str]:
    if isinstance(model, torchvision.models.VisionTransformer):
        stem = Stage(model, ['conv_proj', 'encoder.dropout'], ['class_token', 'encoder.pos_embedding'], _embed_patches)
        return [stem, *group(model, list(expand(model, ['encoder.layers', 'encoder.ln'])))], 'tokens'
    children = {name for name, _ in model.named_children()}
    chain = next((names for names in _CHAINS if children.issuperset(names)), None)
    if chain is None:
        raise ValueError(f"torchvision's {architecture} is not supported: use a model of timm, 'timm/<name>'")
    stages = group(model, list(expand(model, chain, suffixes=('AnyStage',))))
    if isinstance(model, torchvision.models.DenseNet):
        stages.append(Stage(model, [], call=lambda model, features: nn.functional.relu(features)))
    return stages, 'channels last' if 'norm' in chain else 'channels first'


def _embed_patches(model: Any, pixels: Tensor) -> Tensor:
    patches = model._process_input(pixels)
    tokens = torch.cat([model.class_token.expand(len(patches), -1, -1), patches], dim=1)
    return model.encoder.dropout(tokens + model.encoder.pos_embedding)


def _width(model: Any) -> int:
    """How many channels the features of a whole model have: what its classifier takes."""
    if isinstance(model, torchvision.models.VisionTransformer):
        return model.hidden_dim
    classifier = next(module for name in _CLASSIFIERS if (module := getattr(model, name, None)) is not None)
    for layer in classifier.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
        if isinstance(layer, nn.LayerNorm):
            return layer.normalized_shape[0]
        if isinstance(layer, nn.Linear):
            # VGG and AlexNet give their classifier all places of the map
            size = getattr(getattr(model, 'avgpool', None), 'output_size', 1)
            return layer.in_features // math.prod(size if isinstance(size, tuple) else (size,))
    raise ValueError(f'{type(model).__name__} has no classifier that says how wide its features are')
