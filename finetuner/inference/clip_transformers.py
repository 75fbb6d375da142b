"""CLIP models of transformers: CLIP, MetaCLIP 2 and SigLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn

from finetuner.inference.clip_encoders import ClipModel, Tower, causal_mask, take_tokens
from finetuner.inference.clip_tokens import ClipTextPreprocessor
from finetuner.inference.images import ImagePreprocessor, ImageSettings, Interpolation
from finetuner.inference.layout import find_weights, read_json
from finetuner.inference.text_encoder import quiet

MODEL_TYPES = ('clip', 'metaclip_2', 'siglip')

_OLD_EOS = 2  # what the configurations of old CLIP models say, whatever their tokenizer has
_RESAMPLING: dict[int, Interpolation] = {
    0: 'nearest',
    1: 'lanczos',
    2: 'bilinear',
    3: 'bicubic',
    4: 'box',
    5: 'hamming',
}


class TransformersClip(ClipModel):
    """:param tokenizer: the fast one of the model.
    :param image_processor: the model's.
    :raises ValueError: the tokenizer or the image processor is of a kind that is not supported.
    """

    library: ClassVar = 'transformers-clip'

    def __init__(self, model: transformers.PreTrainedModel, tokenizer: Any, image_processor: Any):
        super().__init__(model)
        self.config = model.config
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.settings = _image_settings(image_processor)

    @classmethod
    def load(cls, directory: Path, pretrained: bool = True) -> TransformersClip:
        """Read a directory; weights become float32.

        :param pretrained: False starts from weights at random.
        :raises ValueError: there are no safetensors, or no tokenizer, or the model is of a kind that is not supported.
        """
        with quiet():
            config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
            if config.model_type not in MODEL_TYPES:
                raise ValueError(
                    f'{directory} is a model of type {config.model_type}: supported are {", ".join(MODEL_TYPES)}'
                )
            options = {'dtype': torch.float32, 'attn_implementation': 'sdpa', 'trust_remote_code': False}
            if pretrained:
                find_weights(directory)
                model = transformers.AutoModel.from_pretrained(
                    directory, config=config, use_safetensors=True, **options
                )
            else:
                model = transformers.AutoModel.from_config(config, **options)
            return cls(model, _load_tokenizer(directory), _load_image_processor(directory, config))

    @property
    def is_causal(self) -> bool:
        return bool(self.config.model_type != 'siglip')

    def text_tower(self) -> Tower:
        text = self.model.text_model
        blocks = text.encoder.layers
        if not self.is_causal:
            end: nn.Module = _LastEnd(text.final_layer_norm, text.head)
            return _TextTower(text.embeddings, blocks, end, text.head.out_features, False)
        eos = self.config.text_config.eos_token_id
        projection = self.model.text_projection
        end = _EosEnd(
            text.final_layer_norm,
            projection,
            None if self.config.model_type == 'clip' and eos == _OLD_EOS else eos,
        )
        return _TextTower(text.embeddings, blocks, end, projection.out_features, True)

    def vision_tower(self) -> Tower:
        vision = self.model.vision_model
        if not self.is_causal:
            if not vision.use_head:
                raise ValueError('this SigLIP model has no pooling head for images')
            width = self.config.vision_config.hidden_size
            return _VisionTower(
                vision.embeddings, vision.encoder.layers, nn.Sequential(vision.post_layernorm, vision.head), width
            )
        projection = self.model.visual_projection
        return _VisionTower(
            nn.Sequential(vision.embeddings, vision.pre_layrnorm),
            vision.encoder.layers,
            _FirstEnd(vision.post_layernorm, projection),
            projection.out_features,
        )

    def text_preprocessor(self, max_length: int | None = None) -> ClipTextPreprocessor:
        longest = int(self.config.text_config.max_position_embeddings)
        least = self.tokenizer.num_special_tokens_to_add() + 1 if self.is_causal else longest
        if max_length is not None and not least <= max_length <= longest:
            raise ValueError(f'max_length is {max_length}: this model takes from {least} to {longest} tokens')
        # a copy: a call of the original would change its length limit
        backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        pad_id = self.tokenizer.pad_token_id
        if pad_id is None:
            pad_id = self.config.text_config.pad_token_id or 0
        return ClipTextPreprocessor(backend, max_length or longest, int(pad_id), fixed_length=not self.is_causal)

    def image_preprocessor(self) -> ImagePreprocessor:
        return ImagePreprocessor(self.settings)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with quiet():
            for part in (self.model, self.tokenizer, self.image_processor):
                part.save_pretrained(directory)


class _TextTower(Tower):
    def __init__(self, start: nn.Module, blocks: nn.ModuleList, end: nn.Module, dim: int, is_causal: bool):
        super().__init__(start, blocks, end, dim)
        self.is_causal = is_causal

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.start(inputs)
        # what comes after a token has no influence on it: neither has padding, and it needs no mask
        mask = causal_mask(inputs.shape[1], inputs.device)[None, None] if self.is_causal else None
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.end(hidden, inputs)


class _VisionTower(Tower):
    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.start(inputs)
        for block in self.blocks:
            hidden = block(hidden, None)
        return self.end(hidden)


class _EosEnd(nn.Module):
    """Takes the token that ends the text: the first that has its id, or without one the largest id."""

    def __init__(self, norm: nn.Module, projection: nn.Module, eos_id: int | None):
        super().__init__()
        self.norm, self.projection, self.eos_id = norm, projection, eos_id

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        ends = (ids if self.eos_id is None else ids == self.eos_id).to(torch.int32).argmax(1)
        return self.projection(self.norm(take_tokens(hidden, ends)))


class _LastEnd(nn.Module):
    """Takes the last place, which padding may fill."""

    def __init__(self, norm: nn.Module, head: nn.Module):
        super().__init__()
        self.norm, self.head = norm, head

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self.head(self.norm(hidden[:, -1]))


class _FirstEnd(nn.Module):
    """Takes the token of the class, which is the first."""

    def __init__(self, norm: nn.Module, projection: nn.Module):
        super().__init__()
        self.norm, self.projection = norm, projection

    def forward(self, hidden: Tensor) -> Tensor:
        return self.projection(self.norm(hidden[:, 0]))


def _load_tokenizer(directory: Path) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        if tokenizer.is_fast:
            return tokenizer
    except (OSError, ValueError, ImportError, AttributeError, TypeError):
        pass  # SigLIP's own class is a slow one, and needs sentencepiece
    try:
        return transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f'{directory} has no fast tokenizer (tokenizer.json), which is needed: {error}') from error


def _load_image_processor(directory: Path, config: Any) -> Any:
    if any((directory / name).is_file() for name in ('preprocessor_config.json', 'processor_config.json')):
        return transformers.AutoImageProcessor.from_pretrained(directory, trust_remote_code=False)
    side = config.vision_config.image_size
    if config.model_type == 'siglip':
        return transformers.SiglipImageProcessor(size={'height': side, 'width': side})
    return transformers.CLIPImageProcessor(size={'shortest_edge': side}, crop_size={'height': side, 'width': side})


def _image_settings(processor: Any) -> ImageSettings:
    size = dict(processor.size)
    shortest = size.get('shortest_edge')
    crop = dict(processor.crop_size) if getattr(processor, 'do_center_crop', False) else None
    if not (shortest or {'height', 'width'} <= set(size)):
        raise ValueError(f'an image processor with the size {size} is not supported')
    if not (processor.do_resize and processor.do_rescale and processor.do_normalize):
        raise ValueError('an image processor that does not resize, scale and normalize is not supported')
    resized = (shortest, shortest) if shortest else (size['height'], size['width'])
    if shortest and crop is None:
        raise ValueError('an image processor that gives images of different sizes is not supported')
    if abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ValueError(f'an image processor that scales by {processor.rescale_factor} is not supported')
    return ImageSettings(
        size=(crop['height'], crop['width']) if crop else resized,
        resize='shortest' if shortest else 'squash',
        resize_size=resized,
        interpolation=_RESAMPLING[int(processor.resample)],
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )


def is_transformers_clip(directory: Path) -> bool:
    """Whether a directory holds a model that :class:`TransformersClip` reads."""
    path = directory / 'config.json'
    content = read_json(path) if path.is_file() else None
    return isinstance(content, dict) and content.get('model_type') in MODEL_TYPES
