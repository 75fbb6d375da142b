"""CLIP: one model of two encoders, `clip-text` and `clip-vision`, which embed texts and images in one space.

In a folder of models (`models/` of an artifact) it takes three directories:

    clip/         the whole model as its library writes it, which `CLIPModel.from_pretrained` of transformers, or
                  `open_clip.create_model('local-dir:…')`, opens
    clip-text/    encoder.json, tokenizer.json, a head if there is one, model.onnx
    clip-vision/  encoder.json with the image settings, a head if there is one, model.onnx

Those of the two encoders have no weights of their own but the head's: with torch they take them from `../clip`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetuner.inference.clip_encoders import (
    SHARED,
    TEXT,
    VISION,
    ClipEncoder,
    ClipModel,
    ClipTextEncoder,
    ClipVisionEncoder,
)
from finetuner.inference.clip_tokens import ClipTextPreprocessor
from finetuner.inference.clip_transformers import TransformersClip, is_transformers_clip
from finetuner.inference.description import has_description, read_description
from finetuner.inference.encoder import Encoder
from finetuner.inference.head import load_head
from finetuner.inference.images import ImagePreprocessor, ImageSettings
from finetuner.inference.pretrained import HUB_IDS
from finetuner.models import find_backbone

_LOCAL, _HUB = 'local-dir:', 'hf-hub:'
_HUB_PATTERNS = ['*.json', '*.safetensors', '*.txt', '*.model']


@dataclass(frozen=True)
class LogitScale:
    """How a model turns cosines into logits: `exp(logarithm) * cosine + bias`.

    :param logarithm: `logit_scale` of the libraries and of CLIPLoss.
    :param bias: None for models that were trained with a softmax, which it would not change.
    """

    logarithm: float
    bias: float | None = None


def load_clip(
    directory_or_name: str | Path, options: Mapping[str, Any] | None = None, max_length: int | None = None
) -> dict[str, ClipEncoder]:
    """Load both encoders of a model; weights become float32.

    :param directory_or_name: a directory of transformers (CLIP, MetaCLIP 2, SigLIP) or of open_clip, which may be
        written `local-dir:…`; a folder of models that :func:`save_clip` wrote; `<architecture>::<pretrained>` of
        open_clip, `pretrained` a tag or a file; a hub id, which may be written `hf-hub:…`; a documented short name.
    :param options: `pretrained`: False starts from weights at random. `weights`: a file to start from, for
        architectures of open_clip. `augment`: train with random crops of the images, half of them mirrored.
        `normalize`: scale embeddings to L2 norm 1 (default as saved, else False).
    :param max_length: the longest text in tokens; None is the longest that the model can take, or as saved.
    :return: `clip-text` and `clip-vision`, which share one model.
    :raises ValueError: the model is not to be found, unsafe (pickled weights, code of its own) or not supported, or an
        option is unknown.
    """
    known = dict(options or {})
    pretrained, weights = bool(known.pop('pretrained', True)), known.pop('weights', None)
    normalize = known.pop('normalize', None)
    augment = bool(known.pop('augment', False))
    if known:
        raise ValueError(f'model_options: {", ".join(map(repr, sorted(known)))} is not an option of a CLIP model')
    location = _locate(str(directory_or_name))
    folder = location if isinstance(location, Path) and _is_saved(location) else None
    if folder is not None:
        location = folder / SHARED
    whole = _open(location, pretrained, weights)
    encoders = {
        name: _make(name, whole, folder and folder / name, max_length, normalize, augment) for name in (TEXT, VISION)
    }
    dims = {encoder.backbone_dim for encoder in encoders.values()}
    if len(dims) > 1:
        raise ValueError(f'{directory_or_name} gives texts and images embeddings of different lengths: {dims}')
    return encoders


def load_clip_encoder(directory: str | Path) -> ClipEncoder:
    """Load one encoder from its directory in a folder of models, for inference: it cannot be saved.

    :raises ValueError: the directory is not one of a CLIP model, or the folder `clip` beside it is missing.
    """
    directory = Path(directory)
    name = {'text': TEXT, 'image': VISION}.get(read_description(directory)['modality'])
    shared = directory.parent / SHARED
    if name is None or not shared.is_dir():
        raise ValueError(f'{directory} needs the weights in {shared}, which is not there')
    encoder = _make(name, _open(shared, True, None), directory)
    encoder.whole = None
    return encoder


def save_clip(encoders: Mapping[str, Encoder], models_directory: str | Path) -> None:
    """Write both encoders, and the model that they share, to a folder of models.

    :param encoders: of :func:`load_clip`.
    :param models_directory: gets the directories `clip`, `clip-text` and `clip-vision`; files of the same names in them
        are replaced.
    :raises ValueError: the encoders are not the two of one model.
    """
    text, vision = _both(encoders)
    whole = text.check_whole()
    if vision.whole is not whole:
        raise ValueError('the two encoders are not of one model: load both with load_clip')
    whole.save(Path(models_directory) / SHARED)
    for name, encoder in ((TEXT, text), (VISION, vision)):
        encoder.save_own(Path(models_directory) / name)


def clip_logit_scale(encoders: Mapping[str, Encoder]) -> LogitScale:
    """How the model of both encoders turns cosines into logits: what its loss starts from.

    :raises ValueError: the encoders are not the two of one model.
    """
    whole = _both(encoders)[0].check_whole()
    bias = whole.logit_bias
    return LogitScale(whole.logit_scale.item(), None if bias is None else bias.item())


@torch.no_grad()
def set_clip_logit_scale(encoders: Mapping[str, Encoder], value: LogitScale) -> None:
    """Give the model what its loss has learned, so that it is saved with it. A model without a bias ignores one.

    :raises ValueError: the encoders are not the two of one model.
    """
    whole = _both(encoders)[0].check_whole()
    whole.logit_scale.fill_(value.logarithm)
    if whole.logit_bias is not None and value.bias is not None:
        whole.logit_bias.fill_(value.bias)


def is_clip(directory_or_name: str | Path) -> bool:
    """Whether a directory holds a model that :func:`load_clip` opens, or a name means one. A hub id says nothing."""
    name = str(directory_or_name)
    backbone = find_backbone(name)
    if backbone is not None:
        return backbone.task == 'text-to-image'
    if '::' in name or name.startswith(_LOCAL):
        return True
    directory = Path(name.removeprefix(_LOCAL)).expanduser()
    return directory.is_dir() and (
        _is_saved(directory) or is_transformers_clip(directory) or (directory / 'open_clip_config.json').is_file()
    )


def is_clip_encoder(directory: Path) -> bool:
    """Whether a directory is one that :func:`load_clip_encoder` opens."""
    if not has_description(directory):
        return False
    description = read_description(directory)
    return description['library'] in ('transformers-clip', 'open_clip') and description['modality'] in ('text', 'image')


def _both(encoders: Mapping[str, Encoder]) -> tuple[ClipTextEncoder, ClipVisionEncoder]:
    text, vision = encoders.get(TEXT), encoders.get(VISION)
    if len(encoders) != 2 or not isinstance(text, ClipTextEncoder) or not isinstance(vision, ClipVisionEncoder):
        raise ValueError(f'the encoders {", ".join(sorted(encoders))} are not the two of a CLIP model')
    return text, vision


def _is_saved(directory: Path) -> bool:
    return all((directory / name).is_dir() for name in (SHARED, TEXT, VISION))


def _locate(name: str) -> Path | str:
    """A directory, or `<architecture>::<pretrained>`."""
    directory = Path(name.removeprefix(_LOCAL)).expanduser()
    if name and directory.is_dir():
        return directory
    if name.startswith(_LOCAL):
        raise ValueError(f'the model directory {str(directory)!r} does not exist')
    backbone = find_backbone(name)
    name = backbone.source if backbone else HUB_IDS.get(name.lower(), name)
    return name if '::' in name else _fetch(name.removeprefix(_HUB))


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    if not hub_id or hub_id.count('/') > 1 or hub_id.startswith(('/', '.', '~')):
        raise ValueError(f'{hub_id!r} is neither a model directory, nor a hub id, nor <architecture>::<pretrained>')
    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_PATTERNS))
    except (OSError, ValueError) as error:
        raise ValueError(
            f'the model {hub_id!r} is neither a directory here nor could it be fetched from the hub: {error}'
        ) from error


def _open(location: Path | str, pretrained: bool, weights: str | Path | None) -> ClipModel:
    if isinstance(location, Path):
        if weights is not None:
            raise ValueError('weights: a file can be given for <architecture>::<pretrained> of open_clip only')
        if is_transformers_clip(location):
            return TransformersClip.load(location, pretrained)
    # importing open_clip takes a second, and installations without it can do the rest
    from finetuner.inference.clip_open import OpenClip, is_open_clip

    if isinstance(location, str):
        architecture, _, tag = location.partition('::')
        if not pretrained and weights is None:
            return OpenClip.create(architecture, None)
        source = str(weights or tag)
        if not source:
            raise ValueError(f'{location!r} names no weights after "::": give a tag or a file, or pretrained=False')
        return OpenClip.create(architecture, source)
    if is_open_clip(location):
        return OpenClip.load(location, pretrained)
    raise ValueError(f'{location} holds no CLIP model: neither a config.json of one nor an open_clip_config.json')


def _make(
    name: str,
    whole: ClipModel,
    directory: Path | None,
    max_length: int | None = None,
    normalize: bool | None = None,
    augment: bool = False,
) -> ClipEncoder:
    """:param directory: where the encoder was saved, if it was."""
    description = read_description(directory) if directory else {}
    head = load_head(description.get('head', []), directory) if directory else []
    normalize = bool(description.get('normalize', False)) if normalize is None else normalize
    if name == TEXT:
        saved = ClipTextPreprocessor.load(directory) if directory and max_length is None else None
        texts = saved or whole.text_preprocessor(max_length)
        return ClipTextEncoder(whole.text_tower(), whole, texts, head, normalize).eval()
    settings = ImageSettings.from_dict(description['preprocess']) if description else None
    images = whole.image_preprocessor() if settings is None else ImagePreprocessor(settings)
    return ClipVisionEncoder(whole.vision_tower(), whole, images, head, normalize, augment).eval()
