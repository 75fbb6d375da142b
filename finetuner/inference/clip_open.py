"""CLIP models of open_clip: its own towers, those of timm for images, those of transformers for texts."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import torch
import transformers
from open_clip.hf_model import ClsPooler, HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import TextTransformer, VisionTransformer
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from finetuner.inference.clip_encoders import ClipModel, Tower, take_tokens
from finetuner.inference.clip_tokens import LITERALS, ClipTextPreprocessor, simple_tokenizer
from finetuner.inference.images import ImagePreprocessor, ImageSettings
from finetuner.inference.layer_groups import layer_groups
from finetuner.inference.layout import read_json, write_json
from finetuner.inference.stages import Stage, run
from finetuner.inference.text_encoder import quiet
from finetuner.inference.timm_models import TimmBackbone

CONFIG_FILE = 'open_clip_config.json'
WEIGHTS_FILE = 'open_clip_model.safetensors'

# the configuration of a text tower of transformers, which open_clip would look up on the hub
_TEXT_CONFIG = 'text_tower'
_SUFFIXES = ('.safetensors', '.bin', '.pt', '.pth')


class OpenClip(ClipModel):
    """:param config: `model_cfg` of open_clip, from which it builds the model.
    :param tokenizer: of transformers; None is open_clip's SimpleTokenizer.
    :raises ValueError: the model, its tokenizer or its image settings are of a kind that is not supported.
    """

    library: ClassVar = 'open_clip'

    def __init__(self, model: open_clip.CLIP | open_clip.CustomTextCLIP, config: dict[str, Any], tokenizer: Any = None):
        super().__init__(model)
        self.config = config
        self.tokenizer = tokenizer
        self.text_config: dict[str, Any] = config['text_cfg']
        self.preprocess: dict[str, Any] = dict(model.visual.preprocess_cfg)
        self.settings = _image_settings(self.preprocess)
        if not isinstance(model, (open_clip.CLIP, open_clip.CustomTextCLIP)):
            raise ValueError(f'open_clip models of the class {type(model).__name__} are not supported')
        if self.text_config.get('tokenizer_mode'):
            raise ValueError(f'the tokenizer_mode {self.text_config["tokenizer_mode"]!r} of open_clip is not supported')

    @classmethod
    def load(cls, directory: Path, pretrained: bool = True) -> OpenClip:
        """Read a directory with `open_clip_config.json`; weights become float32.

        :param pretrained: False starts from weights at random.
        :raises ValueError: there are no weights, or the model is of a kind that is not supported.
        """
        content = read_json(directory / CONFIG_FILE)
        if not isinstance(content, dict) or not isinstance(config := content.get('model_cfg'), dict):
            raise ValueError(f'{directory / CONFIG_FILE} has no model_cfg')
        if pretrained and not any(path.suffix in _SUFFIXES for path in directory.iterdir()):
            raise ValueError(f'{directory} has no weights: open_clip writes them to {WEIGHTS_FILE}')
        text_config = deepcopy(config['text_cfg']) | {'hf_model_pretrained': False}
        if (directory / _TEXT_CONFIG).is_dir():
            text_config['hf_model_name'] = str(directory / _TEXT_CONFIG)
        overrides = {'text_cfg': text_config} if text_config.get('hf_model_name') else {}
        model = _create(f'local-dir:{directory}', load_weights=pretrained, pretrained_text=False, **overrides)
        return cls(model, config, _load_tokenizer(config, str(directory)))

    @classmethod
    def create(cls, architecture: str, weights: str | None) -> OpenClip:
        """Build a model of open_clip's own list.

        :param architecture: a name such as `ViT-B-32`.
        :param weights: a tag that open_clip knows, or a file; None starts from weights at random.
        :raises ValueError: there is no such architecture, or no such weights.
        """
        config = open_clip.get_model_config(architecture.replace('/', '-'))
        if config is None:
            raise ValueError(
                f'open_clip has no architecture {architecture!r}: it has {", ".join(open_clip.list_models())}'
            )
        # which activation the weights were trained with is known of the tag, not of the architecture
        tag = open_clip.get_pretrained_cfg(architecture, weights) if weights else {}
        if tag.get('quick_gelu'):
            config['quick_gelu'] = True
        model = _create(architecture, weights, force_quick_gelu=bool(config.get('quick_gelu')), pretrained_text=False)
        return cls(model, config, _load_tokenizer(config, None))

    def text_tower(self) -> Tower:
        model = self.model
        text = model.text if isinstance(model, open_clip.CustomTextCLIP) else model
        if isinstance(text, HFTextEncoder):
            return _TransformersTextTower(text, self._pad_id)
        if not isinstance(text, (open_clip.CLIP, TextTransformer)) or getattr(text, 'cls_emb', None) is not None:
            raise ValueError(f'text towers of the class {type(text).__name__} with these settings are not supported')
        if getattr(text, 'use_pad_mask', False):
            raise ValueError('text towers with use_pad_mask are not supported')
        return _TextTower(text)

    def vision_tower(self) -> Tower:
        visual = self.model.visual
        if isinstance(visual, TimmModel):
            return _TimmTower(visual, self.settings, self.config['embed_dim'])
        if isinstance(visual, ModifiedResNet):
            layers = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
            return Tower(_ResNetStart(visual), layers, visual.attnpool, visual.output_dim)
        if not isinstance(visual, VisionTransformer):
            raise ValueError(f'image towers of the class {type(visual).__name__} are not supported')
        _check_batch_first(visual.transformer)
        return Tower(_VisionStart(visual), visual.transformer.resblocks, _VisionEnd(visual), visual.output_dim)

    def text_preprocessor(self, max_length: int | None = None) -> ClipTextPreprocessor:
        longest = int(self.text_config.get('context_length', open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH))
        fixed = _reads_padding(self.model)
        least = longest if fixed else 3
        if max_length is not None and not least <= max_length <= longest:
            raise ValueError(f'max_length is {max_length}: this model takes from {least} to {longest} tokens')
        options = dict(self.text_config.get('tokenizer_kwargs') or {})
        cleaning = options.pop('clean', 'lower' if self.tokenizer is None else 'whitespace')
        strips = options.pop('strip_sep_token', False)
        if options:
            raise ValueError(f'the tokenizer_kwargs {", ".join(sorted(options))} of open_clip are not supported')
        length = max_length or longest
        if self.tokenizer is None:
            simple = SimpleTokenizer()
            backend = simple_tokenizer(simple.encoder, sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__))
            return ClipTextPreprocessor(backend, length, 0, cleaning, LITERALS, fixed_length=fixed)
        backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        erased = self.tokenizer.sep_token_id if strips else None
        return ClipTextPreprocessor(backend, length, self._pad_id, cleaning, erased_id=erased, fixed_length=fixed)

    def image_preprocessor(self) -> ImagePreprocessor:
        return ImagePreprocessor(self.settings)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / CONFIG_FILE, {'model_cfg': self.config, 'preprocess_cfg': self.preprocess})
        state = {name: weight.detach().cpu().contiguous() for name, weight in self.model.state_dict().items()}
        save_file(state, directory / WEIGHTS_FILE)
        with quiet():
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(directory)
            if isinstance(text := getattr(self.model, 'text', None), HFTextEncoder):
                text.config.save_pretrained(directory / _TEXT_CONFIG)

    @property
    def _pad_id(self) -> int:
        return 0 if self.tokenizer is None else int(self.tokenizer.pad_token_id or 0)


class _TextTower(Tower):
    """:param text: a TextTransformer, or a CLIP, which has the parts of one."""

    def __init__(self, text: Any):
        _check_batch_first(text.transformer)
        end = _TextEnd(text)
        projection = end.projection
        dim = text.transformer.width
        if isinstance(projection, nn.Linear):
            dim = projection.out_features
        elif projection is not None:
            dim = projection.shape[1]
        super().__init__(_TextStart(text), text.transformer.resblocks, end, dim)
        mask = text.attn_mask
        self.register_buffer('mask', None if mask is None else mask.clone(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.start(inputs)
        length = inputs.shape[1]
        mask = None if self.mask is None else self.mask[:length, :length]  # type: ignore[index]
        for block in self.blocks:
            hidden = block(hidden, attn_mask=mask)
        return self.end(hidden, inputs)


class _TextStart(nn.Module):
    def __init__(self, text: Any):
        super().__init__()
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]


class _TextEnd(nn.Module):
    def __init__(self, text: Any):
        super().__init__()
        self.norm = text.ln_final
        self.projection = text.text_projection
        self.pool_type: str = text.text_pool_type if isinstance(text, open_clip.CLIP) else text.pool_type
        self.eos_id: int = text.text_eos_id if isinstance(text, open_clip.CLIP) else text.eos_id
        if self.pool_type not in ('first', 'last', 'argmax', 'eos'):
            raise ValueError(f'text towers with the pool_type {self.pool_type!r} are not supported')

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        if self.pool_type in ('first', 'last'):
            pooled = hidden[:, 0 if self.pool_type == 'first' else -1]
        else:
            ends = (ids if self.pool_type == 'argmax' else ids == self.eos_id).to(torch.int32).argmax(1)
            pooled = take_tokens(hidden, ends)
        pooled = self.norm(pooled)
        if self.projection is None:
            return pooled
        return self.projection(pooled) if isinstance(self.projection, nn.Linear) else pooled @ self.projection


class _TransformersTextTower(Tower):
    """A text model of transformers, pooling and projection of open_clip. The model itself runs its blocks."""

    def __init__(self, text: HFTextEncoder, pad_id: int):
        uses_pooler = isinstance(text.pooler, ClsPooler) and text.pooler.use_pooler_output
        pooler = [part for part in (getattr(text.transformer, 'pooler', None),) if part is not None and uses_pooler]
        super().__init__(text.transformer, [], _PooledEnd(text, bool(pooler)), text.output_dim)
        self.pad_id = int(text.config.pad_token_id)
        # a tuple, so that torch does not take them for further submodules
        self._parts: tuple[nn.Module, ...] = (*layer_groups(text.transformer), *pooler, self.end)

    def groups(self) -> list[nn.Module]:
        return [part for part in self._parts if any(True for _ in part.parameters())]

    def forward(self, inputs: Tensor) -> Tensor:
        mask = (inputs != self.pad_id).long()
        found = self.start(input_ids=inputs, attention_mask=mask)
        return self.end(found.pooler_output if self.end.takes_pooled else found.last_hidden_state, mask)


class _PooledEnd(nn.Module):
    def __init__(self, text: HFTextEncoder, takes_pooled: bool):
        super().__init__()
        self.pooler, self.projection, self.takes_pooled = text.pooler, text.proj, takes_pooled

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        pooled = hidden if self.takes_pooled else self.pooler(BaseModelOutput(last_hidden_state=hidden), mask)
        return self.projection(pooled)


class _TimmTower(Tower):
    """A model of timm and a projection of open_clip."""

    def __init__(self, visual: TimmModel, settings: ImageSettings, dim: int):
        super().__init__(visual.trunk, [], visual.head, dim)
        self._settings = settings
        # a tuple, so that torch does not take them for further submodules; None until they are asked for
        self._stages: tuple[Stage, ...] | None = None

    def groups(self) -> list[nn.Module]:
        if self._stages is None:
            self._stages = tuple(_timm_stages(self.start, self._settings))
        for stage in self._stages:
            stage.refresh()
        parts = [*(self._stages or [self.start]), self.end]
        return [part for part in parts if any(True for _ in part.parameters())]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.end(run(self._stages, inputs) if self._stages else self.start(inputs))


class _VisionStart(nn.Module):
    def __init__(self, visual: VisionTransformer):
        super().__init__()
        self.conv = visual.conv1
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.patch_dropout = visual.patch_dropout
        self.norm = visual.ln_pre

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv(images).flatten(2).transpose(1, 2)
        classes = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        places = torch.cat([classes, patches], 1) + self.positional_embedding.to(patches.dtype)
        return self.norm(self.patch_dropout(places))


class _VisionEnd(nn.Module):
    def __init__(self, visual: VisionTransformer):
        super().__init__()
        if visual.output_tokens or visual.pool_type not in ('tok', 'avg') or visual.attn_pool is not None:
            raise ValueError('image towers with attentional pooling, as those of CoCa, are not supported')
        self.norm = visual.ln_post
        self.projection = visual.proj
        self.pool_type, self.norm_last = visual.pool_type, visual.final_ln_after_pool

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.norm_last and self.pool_type == 'avg':
            hidden = self.norm(hidden)
        pooled = hidden[:, 0] if self.pool_type == 'tok' else hidden[:, 1:].mean(1)
        if self.norm_last or self.pool_type == 'tok':
            pooled = self.norm(pooled)
        return pooled if self.projection is None else pooled @ self.projection


class _ResNetStart(nn.Sequential):
    """The stem of a ResNet, whose modules have no module of their own in open_clip."""

    def __init__(self, visual: ModifiedResNet):
        names = ['conv1', 'bn1', 'act1', 'conv2', 'bn2', 'act2', 'conv3', 'bn3', 'act3', 'avgpool']
        super().__init__(*(getattr(visual, name) for name in names))


def _create(name: str, pretrained: str | None = None, **options: Any) -> Any:
    wanted = f'{name}::{pretrained}' if pretrained else name.removeprefix('local-dir:')
    try:
        with _quiet_log():
            return open_clip.create_model(name, pretrained=pretrained, precision='fp32', weights_only=True, **options)
    except pickle.UnpicklingError as error:
        raise ValueError(f'open_clip cannot open {wanted}: its weights are pickled with more than weights') from error
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'open_clip cannot open {wanted}: {error}') from error


def _load_tokenizer(config: dict[str, Any], directory: str | None) -> Any:
    """The tokenizer of transformers that a configuration names; None where it names none."""
    name = config['text_cfg'].get('hf_tokenizer_name')
    if not name:
        return None
    source = directory or name
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f'the tokenizer of open_clip {source!r} cannot be loaded: {error}') from error
    if not tokenizer.is_fast:
        raise ValueError(f'{type(tokenizer).__name__} has no fast version (tokenizer.json), which is needed')
    return tokenizer


def _timm_stages(trunk: Any, settings: ImageSettings) -> list[Stage]:
    """A model of timm as a chain; none where it is not one, or its pooling is open_clip's."""
    modes = {module: module.training for module in trunk.modules()}
    try:
        backbone = TimmBackbone(trunk.eval(), settings)
        stages = backbone.stages(backbone.default_pooling, {})
        with torch.no_grad():
            pixels = torch.linspace(-2, 2, 3 * settings.size[0] * settings.size[1]).view(1, 3, *settings.size)
            pixels = pixels.to(next(trunk.parameters()).device)
            return stages if torch.allclose(run(stages, pixels), trunk(pixels), rtol=1e-4, atol=1e-5) else []
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return []
    finally:
        for module, training in modes.items():
            module.training = training


def _reads_padding(model: Any) -> bool:
    """Whether embeddings depend on how far a text is filled up."""
    text = model.text if isinstance(model, open_clip.CustomTextCLIP) else model
    if isinstance(text, HFTextEncoder):
        return False
    pool_type = text.text_pool_type if isinstance(text, open_clip.CLIP) else text.pool_type
    return text.attn_mask is None or pool_type == 'last'


def _check_batch_first(transformer: Any) -> None:
    if not transformer.batch_first:
        raise ValueError('transformers of open_clip with batch_first=False are not supported')


def _image_settings(config: dict[str, Any]) -> ImageSettings:
    if config.get('resize_mode') not in ('shortest', 'squash', None):
        raise ValueError(f'the resize_mode {config["resize_mode"]!r} of open_clip is not supported')
    size = config['size']
    return ImageSettings(
        size=(size, size) if isinstance(size, int) else tuple(size),
        resize=config.get('resize_mode') or 'shortest',
        interpolation='bilinear' if config.get('interpolation') == 'bilinear' else 'bicubic',
        mean=tuple(config['mean']),
        std=tuple(config['std']),
    )


def is_open_clip(directory: Path) -> bool:
    """Whether a directory holds a model that :class:`OpenClip` reads."""
    return (directory / CONFIG_FILE).is_file()


@contextmanager
def _quiet_log() -> Iterator[None]:
    """open_clip writes to the root logger what it does, and warns of weights at random where those were asked for."""
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
