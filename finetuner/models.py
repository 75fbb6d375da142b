"""The table of pretrained models: every name that `fit` and `build_model` know, what it means, and its options.

Beside these names any hub id, model directory, timm name (`timm/<name>`), torchvision name and open_clip name
(`<architecture>::<pretrained>`) will do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

Task = Literal['text-to-text', 'image-to-image', 'text-to-image', 'mesh-to-mesh', 'any']
TASKS: tuple[Task, ...] = ('text-to-text', 'image-to-image', 'text-to-image', 'mesh-to-mesh', 'any')
Library = Literal['transformers', 'torchvision', 'timm', 'open_clip', 'transformers-clip', 'pointnet', 'mlp']


@dataclass(frozen=True)
class Option:
    """One key of `model_options`.

    :param type: as one writes it in Python.
    :param alias: another name of the same.
    """

    name: str
    type: str
    default: Any = None
    required: bool = False
    alias: str | None = None


@dataclass(frozen=True)
class Backbone:
    """A pretrained model that has a name here.

    :param name: the name that is shown.
    :param aliases: other names, older ones among them, that mean the same.
    :param task: what is searched with what.
    :param output_dim: the length of an embedding; None where the options decide.
    :param architecture: `transformer`, `cnn`, `pointnet` or `mlp`.
    :param library: what opens it.
    :param source: the name by which the library knows it: a hub id, or one of its own names.
    :param listed: whether the tables show it.
    :param has_head: whether it brings dense layers behind the pooling.
    """

    name: str
    aliases: tuple[str, ...]
    task: Task
    output_dim: int | None
    architecture: str
    description: str
    library: Library
    source: str
    listed: bool = True
    has_head: bool = False

    @property
    def options(self) -> tuple[Option, ...]:
        """The keys of `model_options` that it takes."""
        return OPTIONS[self.library]


_POOLING = (
    Option('pooling', 'str | None', alias='pooler'),
    Option('pooling_options', 'dict | None', alias='pooler_options'),
)
_PRETRAINED = Option('pretrained', 'bool', True)
_WEIGHTS = Option('weights', 'str | None')
_AUGMENT = Option('augment', 'bool', False)
_PREPROCESS = Option('preprocess_options', 'dict | None')
_COLLATE = Option('collate_options', 'dict | None')
_IMAGES = (*_POOLING, _PRETRAINED, _WEIGHTS, _AUGMENT, _PREPROCESS)
_CLIP = (_PRETRAINED, _AUGMENT, Option('normalize', 'bool | None'), _COLLATE)
OPTIONS: dict[Library, tuple[Option, ...]] = {
    'transformers': (*_POOLING, _COLLATE),
    'torchvision': _IMAGES,
    'timm': _IMAGES,
    'open_clip': (*_CLIP, _WEIGHTS),
    'transformers-clip': _CLIP,
    'pointnet': (
        Option('point_cloud_size', 'int', 2048),
        Option('width', 'float', 1.0),
        _AUGMENT,
        Option('up_axis', 'str', 'y'),
        _PREPROCESS,
    ),
    'mlp': (
        Option('input_size', 'int', required=True),
        Option('hidden_sizes', 'list[int]', required=True),
        Option('bias', 'bool', True),
        Option('activation', 'str | None'),
        Option('l2', 'bool', False),
    ),
}
"""The keys of `model_options` by library; defaults of None are the model's own."""
# what stands in the options of these names, and is an option of its own as well; of images, see `ImageSettings`
_PARTS: dict[str, dict[Library, tuple[str, ...]]] = {
    'collate_options': dict.fromkeys(('transformers', 'open_clip', 'transformers-clip'), ('max_length',)),
    'preprocess_options': {'pointnet': ('point_cloud_size', 'up_axis')},
}


def _jina(size: str, dim: int, parameters: str) -> Backbone:
    name = f'jina-embedding-{size}-en-v1'
    description = f'Text embedding model trained on Linnaeus-Clean, {parameters} parameters'
    return Backbone(
        name, (f'jinaai/{name}',), 'text-to-text', dim, 'transformer', description, 'transformers', f'jinaai/{name}'
    )


def _text(name: str, source: str, dim: int, description: str, *aliases: str, has_head: bool = False) -> Backbone:
    names = (*aliases, source)
    return Backbone(
        name, names, 'text-to-text', dim, 'transformer', description, 'transformers', source, has_head=has_head
    )


def _image(name: str, source: str, dim: int, title: str, listed: bool = True) -> Backbone:
    aliases = (source,) if name != source else ()
    description = f'{title} pre-trained on ImageNet'
    return Backbone(name, aliases, 'image-to-image', dim, 'cnn', description, 'torchvision', source, listed)


def _clip(name: str, source: str, dim: int, description: str, library: Library = 'transformers-clip') -> Backbone:
    return Backbone(name, (source,), 'text-to-image', dim, 'transformer', description, library, source)


# open_clip's architectures that were documented as `<architecture>::<pretrained>`, with their dimensions and weights
_OPEN_CLIP: dict[tuple[str, int], tuple[str, ...]] = {
    ('RN50', 1024): ('openai', 'yfcc15m', 'cc12m'),
    ('RN50-quickgelu', 1024): ('openai', 'yfcc15m', 'cc12m'),
    ('RN101', 512): ('openai', 'yfcc15m'),
    ('RN101-quickgelu', 512): ('openai', 'yfcc15m'),
    ('RN50x4', 640): ('openai',),
    ('RN50x16', 768): ('openai',),
    ('RN50x64', 1024): ('openai',),
    ('ViT-B-32', 512): ('openai', 'laion2b_e16', 'laion400m_e31', 'laion400m_e32', 'laion2b_s34b_b79k'),
    ('ViT-B-32-quickgelu', 512): ('openai', 'laion400m_e31', 'laion400m_e32'),
    ('ViT-B-16', 512): ('openai', 'laion400m_e31', 'laion400m_e32'),
    ('ViT-B-16-plus-240', 640): ('laion400m_e31', 'laion400m_e32'),
    ('ViT-L-14', 768): ('openai', 'laion400m_e31', 'laion400m_e32', 'laion2b_s32b_b82k'),
    ('ViT-L-14-336', 768): ('openai',),
    ('ViT-H-14', 1024): ('laion2b_s32b_b79k',),
    ('ViT-g-14', 1024): ('laion2b_s12b_b42k',),
    ('roberta-ViT-B-32', 512): ('laion2b_s12b_b32k',),
    ('xlm-roberta-large-ViT-H-14', 1024): ('frozen_laion5b_s13b_b90k',),
}


def _open_clip() -> Iterator[Backbone]:
    for (architecture, dim), tags in _OPEN_CLIP.items():
        kind = 'cnn' if architecture.startswith('RN') else 'transformer'
        for tag in tags:
            name = f'{architecture}::{tag}'
            description = f'open_clip {architecture}, weights {tag}'
            yield Backbone(name, (), 'text-to-image', dim, kind, description, 'open_clip', name, listed=False)


BACKBONES: tuple[Backbone, ...] = (
    _text(
        'all-minilm-l6-v2',
        'sentence-transformers/all-MiniLM-L6-v2',
        384,
        'MiniLM of 6 layers tuned on a billion pairs; needs no download',
    ),
    _jina('t', 312, '14 M'),
    _jina('s', 512, '35 M'),
    _jina('b', 768, '110 M'),
    _jina('l', 1024, '330 M'),
    _text(
        'bert-base-en',
        'google-bert/bert-base-cased',
        768,
        'BERT pre-trained on BookCorpus and English Wikipedia',
        'bert-base-cased',
    ),
    _text(
        'bert-base-multi',
        'google-bert/bert-base-multilingual-cased',
        768,
        'BERT pre-trained on multilingual Wikipedia',
        'bert-base-multilingual-cased',
    ),
    _text(
        'distiluse-base-multi',
        'sentence-transformers/distiluse-base-multilingual-cased-v2',
        512,
        'Multilingual Universal Sentence Encoder, distilled',
        'distiluse-base-multilingual-cased-v2',
        has_head=True,
    ),
    _text(
        'sbert-base-en',
        'sentence-transformers/msmarco-distilbert-base-v3',
        768,
        'DistilBERT tuned on MS MARCO',
        'msmarco-distilbert-base-v3',
    ),
    _image('efficientnet-base', 'efficientnet_b4', 1792, 'EfficientNet B4'),
    _image('efficientnet-large', 'efficientnet_b7', 2560, 'EfficientNet B7'),
    _image('efficientnet_b0', 'efficientnet_b0', 1280, 'EfficientNet B0', listed=False),
    _image('resnet-base', 'resnet50', 2048, 'ResNet50'),
    _image('resnet-large', 'resnet152', 2048, 'ResNet152'),
    _clip('clip-base-en', 'openai/clip-vit-base-patch32', 512, 'CLIP ViT-B with patches of 32 pixels'),
    _clip('clip-large-en', 'openai/clip-vit-large-patch14', 768, 'CLIP ViT-L with patches of 14 pixels'),
    _clip(
        'clip-base-multi',
        'xlm-roberta-base-ViT-B-32::laion5b_s13b_b90k',
        512,
        'Multilingual CLIP, XLM-RoBERTa and ViT-B/32 trained on LAION-5B',
        'open_clip',
    ),
    *_open_clip(),
    Backbone(
        'pointnet-base',
        ('pointnet++',),
        'mesh-to-mesh',
        512,
        'pointnet',
        'PointNet++ on point clouds of meshes; starts from random weights',
        'pointnet',
        'pointnet-base',
    ),
    Backbone(
        'mlp',
        (),
        'any',
        None,
        'mlp',
        'Linear layers on embeddings that you bring; starts from random weights',
        'mlp',
        'mlp',
        listed=False,
    ),
)
_BY_NAME = {name.lower(): backbone for backbone in BACKBONES for name in (backbone.name, *backbone.aliases)}


def find_backbone(name: str) -> Backbone | None:
    """The backbone of a name or alias, in upper or lower case; None if there is none."""
    return _BY_NAME.get(name.lower())


def similar_names(name: str) -> list[str]:
    """The models that may be meant by a name that is none of theirs, and that says not where else it is from."""
    if find_backbone(name) or '/' in name or '::' in name or name.startswith('.'):
        return []
    return get_close_matches(name.lower(), list_models(), n=2, cutoff=0.8)


def task_of(name: str) -> Task | None:
    """What is searched with what by a model: one of :data:`TASKS`.

    :param name: of the table, `<architecture>::<pretrained>` of open_clip, or `timm/<name>`.
    :return: None where the name alone does not say.
    """
    if backbone := find_backbone(name):
        return backbone.task
    if '::' in name:
        return 'text-to-image'
    return 'image-to-image' if name.startswith('timm/') else None


def check_options(library: Library, options: Mapping[str, Any] | None, complete: bool = True) -> dict[str, Any]:
    """The options of a model by their first names, those of its parts beside them ('max_length' among them).

    :param complete: those that are required must be there.
    :raises ValueError: one is unknown or given twice, or a required one is missing; the message names it.
    """
    known = OPTIONS[library]
    first = {name: option.name for option in known for name in (option.name, option.alias) if name}
    checked: dict[str, Any] = {}
    for name, value in (options or {}).items():
        if name not in first:
            raise ValueError(
                f'model_options: {name!r} is not an option of this model: it has {", ".join(sorted(first))}'
            )
        if first[name] in checked:
            raise ValueError(f'model_options: {name!r} is given twice, {first[name]!r} is another name of it')
        checked[first[name]] = value
    for part, parts_known in _PARTS.items():
        if library in parts_known:
            _unfold(checked, part, parts_known[library])
    if checked.get('pooling_options') and 'pooling' not in checked:
        checked['pooling'] = 'gem'  # no other has any
    for option in known:
        if complete and option.required and checked.get(option.name) is None:
            raise ValueError(f'model_options: {option.name!r} is missing')
    return checked


def _unfold(options: dict[str, Any], part: str, known: Collection[str]) -> None:
    """Put what is in the options of a part of the model beside them.

    :raises ValueError: one is unknown or given twice.
    """
    for name, value in (options.pop(part, None) or {}).items():
        if name not in known:
            raise ValueError(
                f'model_options: {name!r} is not one of the {part} of this model: it has {", ".join(known)}'
            )
        if name in options:
            raise ValueError(f'model_options: {name!r} is given twice, and in {part}')
        options[name] = value


def list_models() -> list[str]:
    """The names of the pretrained models, as the documentation has them."""
    return [backbone.name for backbone in BACKBONES if backbone.listed]


def list_model_options() -> dict[str, list[dict[str, Any]]]:
    """The keys of `model_options` by model: `{model: [{'name', 'type', 'required', 'default'}, ...]}`."""
    return {
        backbone.name: [
            {'name': name, 'type': option.type, 'required': option.required, 'default': option.default}
            for option in backbone.options
            for name in (option.name, option.alias)
            if name
        ]
        for backbone in BACKBONES
        if backbone.listed or backbone.task == 'any'
    }


def describe_models(task: str | None = None) -> None:
    """Print the table of pretrained models.

    :param task: only those for one of :data:`TASKS`; None is all.
    :raises ValueError: there is no such task.
    """
    from finetuner.console import console, models_table

    if task is not None and task not in TASKS:
        raise ValueError(f'unknown task {task!r}: it is one of {", ".join(TASKS)}')
    shown = [backbone for backbone in BACKBONES if backbone.listed and task in (None, backbone.task)]
    console.print(models_table(shown, task))
