"""The image models of timm, as chains of stages where they are chains, and as one stage where they are not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.layers import SelectAdaptivePool2d
from timm.models import VisionTransformer
from torch import Tensor, nn

from finetuner.inference.images import ImageSettings
from finetuner.inference.layers import pool
from finetuner.inference.layout import find_weights, read_json
from finetuner.inference.stages import OWN, Stage, expand, group, run
from finetuner.inference.torchvision_models import read_weights

LIBRARY = 'timm'

_POOLINGS = {'avg': 'mean', 'fast': 'mean', 'fastavg': 'mean', 'max': 'max', 'fastmax': 'max', 'token': 'cls'}
_THEIRS = {'mean': 'avg', 'max': 'max', 'cls': 'token', 'gem': 'avg'}
# the features end where the first of these begins
_HEADS = ('global_pool', 'attn_pool', 'fc_norm', 'head_drop', 'head', 'fc', 'classifier', 'last_linear')


class TimmBackbone:
    """A model of timm without its classifier.

    :param model: timm's.
    :param settings: how it wants its images.
    """

    library = LIBRARY

    def __init__(self, model: Any, settings: ImageSettings):
        self.architecture = str(model.pretrained_cfg['architecture'])
        self.model = model
        self.settings = settings
        # what has to be said to timm again when it builds the saved model
        self._pooled_by: str | None = None
        self.default_pooling = self._own_pooling()
        self.poolings: tuple[str, ...] = (self.default_pooling,)
        if _pools_tokens(model):
            with_token = model.num_prefix_tokens > 0
            self.poolings = ('mean', 'max', 'gem', *['cls'] * with_token)
        elif len(self._pools()) == 1:
            self.poolings = ('mean', 'max', 'gem')
        if self.default_pooling not in self.poolings:
            self.poolings = (self.default_pooling, *self.poolings)
        self.dim = _measure_width(model, settings)

    @classmethod
    def load(
        cls, name: str, weights: str | None = None, pretrained: bool = True, size: int | None = None
    ) -> TimmBackbone:
        """:param name: timm's name, or `hf-hub:<org>/<name>`.
        :param weights: a file with a state dict.
        :param pretrained: False is weights at random, by torch's seed.
        :param size: height and width of the images, for models that take one size only.
        :raises ValueError: the model or the weights are not there or do not fit each other.
        """
        options: dict[str, Any] = {'img_size': size} if size and _has_one_size(name) else {}
        try:
            with _quiet():
                if weights is not None:
                    options |= _options_of_file(name, Path(weights).expanduser())
                # with its classifier: timm checks then that all weights are there
                model = timm.create_model(name, pretrained=pretrained or weights is not None, **options)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise ValueError(_reason(name, weights, error)) from error
        return cls(_without_classifier(model), _settings(model, size))

    @classmethod
    def open(cls, directory: Path, description: Mapping[str, Any] | None = None) -> TimmBackbone:
        """Read a directory that `timm.create_model('local-dir:...')` opens.

        :param description: `encoder.json` of the directory, if there is one.
        """
        find_weights(directory)
        if not isinstance(read_json(directory / 'config.json'), dict):
            raise ValueError(f'{directory / "config.json"} is not a JSON object')
        try:
            with _quiet():
                model = timm.create_model(f'local-dir:{directory}', pretrained=True)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(f'timm cannot open {directory}: {error}') from error
        preprocess = (description or {}).get('preprocess')
        settings = _settings(model) if preprocess is None else ImageSettings.from_dict(preprocess)
        return cls(_without_classifier(model), settings)

    def stages(self, pooling: str, options: Mapping[str, float], split: bool = True) -> list[Stage]:
        """From scaled pixels, float [B, 3, H, W], to pooled vectors [B, dim].

        :param pooling: one of `poolings`. It is set in the model.
        :param split: find the chain of the model's layers, at the price of two forwards; False is one stage for all.
        """
        self._set_pooling(pooling, options)
        features = (self._find_chain() if split else None) or self._whole()
        used = {id(parameter) for stage in features for parameter in stage.parameters()}
        rest = [
            name
            for name, child in self.model.named_children()
            if (own := list(child.parameters())) and not any(id(parameter) in used for parameter in own)
        ]
        gem_of_tokens = _pools_tokens(self.model) and pooling == 'gem'

        def finish(model: Any, features: Tensor) -> Tensor:
            if gem_of_tokens:
                return model.fc_norm(pool(features[:, model.num_prefix_tokens :], None, pooling, options))
            return model.forward_head(features, pre_logits=True)

        return [*features, Stage(self.model, rest, call=finish)]

    def save(self, directory: Path, pooling: str, options: Mapping[str, float]) -> None:
        """Write `config.json` and `model.safetensors`, as timm reads them. GeM pooling, which timm does not have, is
        the mean there."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(state, directory / 'model.safetensors')
        arguments: dict[str, Any] = {}
        if self._pooled_by is not None:
            arguments['global_pool'] = self._pooled_by
            if isinstance(self.model, VisionTransformer):  # timm would move the last norm along with the pooling
                arguments['fc_norm'] = not isinstance(self.model.fc_norm, nn.Identity)
        settings = self.settings
        data = {
            'input_size': (3, *settings.size),
            'interpolation': settings.interpolation,
            'mean': settings.mean,
            'std': settings.std,
            'crop_mode': 'squash' if settings.resize == 'squash' else 'center',
            'crop_pct': settings.size[0] / (settings.resize_size or settings.size)[0],
        }
        with _quiet():
            timm.models._hub.save_config_for_hf(
                self.model, str(directory / 'config.json'), model_args=arguments, data_config=data
            )

    def _own_pooling(self) -> str:
        if _pools_tokens(self.model):
            return _POOLINGS.get(str(self.model.global_pool), OWN)
        pools = self._pools()
        return _POOLINGS.get(pools[0].pool_type, OWN) if len(pools) == 1 else OWN

    def _pools(self) -> list[SelectAdaptivePool2d]:
        return [module for module in self.model.modules() if isinstance(module, SelectAdaptivePool2d)]

    def _set_pooling(self, pooling: str, options: Mapping[str, float]) -> None:
        if self._pooled_by is not None or pooling == self.default_pooling:
            return
        self._pooled_by = _THEIRS[pooling]
        self.model.reset_classifier(0, self._pooled_by)
        if pooling == 'gem':
            for module in self._pools():
                setattr(module, 'pool', _Pool2d(pooling, options, module))  # noqa: B010
                module.flatten = nn.Identity()

    def _whole(self) -> list[Stage]:
        names = self._feature_names()
        parameters = [name for name, _ in self.model.named_parameters(recurse=False)]
        return [Stage(self.model, names, parameters, call=lambda model, pixels: model.forward_features(pixels))]

    def _feature_names(self) -> list[str]:
        names = [name for name, _ in self.model.named_children()]
        return names[: next((position for position, name in enumerate(names) if name in _HEADS), len(names))]

    def _find_chain(self) -> list[Stage] | None:
        """Stages that give the same as the model's own forward, tried out; None if none is found."""
        names = self._feature_names()
        if isinstance(self.model, VisionTransformer):
            stem = [name for name in names if name not in ('blocks', 'norm')]
            parameters = [name for name, _ in self.model.named_parameters(recurse=False)]
            first = Stage(self.model, stem, parameters, call=_embed_patches)
            candidates = [[first, *group(self.model, list(expand(self.model, ['blocks', 'norm'])))]]
        elif next(self.model.named_parameters(recurse=False), None) is not None:
            return None
        else:
            suffixes = ('Stage',)
            ways = [list(expand(self.model, names, 3, suffixes)), list(expand(self.model, names)), names]
            candidates = [group(self.model, way) for way in ways]
        with _evaluating(self.model):
            pixels = torch.linspace(-2, 2, 3 * self.settings.size[0] * self.settings.size[1])
            pixels = pixels.view(1, 3, *self.settings.size).to(next(self.model.parameters()).device)
            expected = self.model.forward_features(pixels)
            for stages in candidates:
                try:
                    found = run(stages, pixels)
                except (RuntimeError, TypeError, NotImplementedError, ValueError, IndexError):
                    continue
                same = isinstance(found, Tensor) and found.shape == expected.shape
                if same and torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
                    return stages
        return None


class _Pool2d(nn.Module):
    """Pools a feature map where timm's own module would."""

    def __init__(self, pooling: str, options: Mapping[str, float], replaced: SelectAdaptivePool2d):
        super().__init__()
        self.pooling, self.options = pooling, dict(options)
        before = replaced.pool
        self.channels_last = getattr(before, 'dim', None) == (1, 2)
        self.flat = bool(getattr(before, 'flatten', False)) or isinstance(replaced.flatten, nn.Flatten)

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.flatten(1, 2) if self.channels_last else features.flatten(2).transpose(1, 2)
        pooled = pool(tokens, None, self.pooling, self.options)
        if self.flat:
            return pooled
        return pooled[:, None, None, :] if self.channels_last else pooled[:, :, None, None]


def has_model(name: str) -> bool:
    """Whether timm knows a model of this name, with or without the tag of its weights."""
    return timm.is_model(name)


def _embed_patches(model: Any, pixels: Tensor) -> Tensor:
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pixels))))


def _without_classifier(model: Any) -> Any:
    model.reset_classifier(0)
    return model


def _has_one_size(name: str) -> bool:
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
    return bool(cfg is not None and cfg.fixed_input_size)


def _pools_tokens(model: Any) -> bool:
    """Whether a model pools as timm's vision transformers do; some derived from them do not."""
    return (
        isinstance(model, VisionTransformer)
        and type(model).forward_head is VisionTransformer.forward_head
        and model.attn_pool is None
    )


def _measure_width(model: Any, settings: ImageSettings) -> int:
    pools = [module for module in model.modules() if isinstance(module, SelectAdaptivePool2d)]
    known = getattr(model, 'head_hidden_size', None)
    if _pools_tokens(model):
        return int(model.num_features)
    if known and len(pools) == 1:
        return int(known) * pools[0].feat_mult()
    with _evaluating(model):
        return int(model(torch.zeros(1, 3, *settings.size)).shape[-1])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in was_training.items():
            module.training = training


def _settings(model: Any, size: int | None = None) -> ImageSettings:
    config = timm.data.resolve_model_data_config(model)
    if config.get('crop_mode') not in (None, 'center', 'squash'):
        raise ValueError(f'images of the kind crop_mode {config["crop_mode"]!r} are not supported')
    return ImageSettings.from_dict(
        {
            'size': list(config['input_size'][1:]) if size is None else size,
            'resize': 'squash' if config.get('crop_mode') == 'squash' else 'shortest',
            'crop_pct': config['crop_pct'],
            'interpolation': config['interpolation'],
            'mean': config['mean'],
            'std': config['std'],
        }
    )


def _options_of_file(name: str, path: Path) -> dict[str, Any]:
    """What makes timm build the model with the classifier that a file has, and load the file."""
    state = read_weights(path)
    classifier = getattr(timm.get_pretrained_cfg(name), 'classifier', None) or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    sizes = [len(state[f'{layer}.weight']) for layer in classifiers if f'{layer}.weight' in state]
    classes = sizes[0] if sizes else 0
    return {'num_classes': classes, 'pretrained_cfg_overlay': {'file': str(path), 'num_classes': classes}}


def _reason(name: str, weights: str | None, error: Exception) -> str:
    if weights is not None:
        return f'timm cannot load {weights} into {name}: {error}'
    return (
        f'the model {name!r} of timm cannot be loaded: {error}. Without a network, give a file by '
        "model_options={'weights': ...}, or start from random weights with {'pretrained': False}"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep timm's remarks on loading out of the output."""
    logger = logging.getLogger('timm')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
