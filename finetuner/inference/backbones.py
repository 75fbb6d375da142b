"""From a directory or a name to encoders, whatever library they come from. Loads that library alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from finetuner.excepts import SelectModelRequired
from finetuner.inference.description import has_description, read_description
from finetuner.inference.encoder import Encoder
from finetuner.inference.layout import read_json
from finetuner.inference.loading import MODEL
from finetuner.inference.pretrained import check_fetchable
from finetuner.models import Library, check_options, find_backbone

_HUB = 'hf-hub:'
_LOCAL = 'local-dir:'
_HUB_ID = re.compile(r'([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9_][\w.-]*', re.ASCII)
_CLIP: tuple[Library, ...] = ('open_clip', 'transformers-clip')


def load_encoder(
    source: str | Path,
    *,
    pooling: str | None = None,
    pooling_options: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    options: Mapping[str, Any] | None = None,
    select: str | None = None,
) -> Encoder:
    """Load one encoder; the arguments are those of :func:`load_encoders`.

    :param select: which of several; those that are alone ignore it.
    :raises SelectModelRequired: there are several and `select` is None.
    :raises ValueError: there are several and none has this name; or as `load_encoders`.
    """
    encoders = load_encoders(
        source, pooling=pooling, pooling_options=pooling_options, max_length=max_length, options=options
    )
    if len(encoders) == 1:
        return next(iter(encoders.values()))
    names = ', '.join(sorted(encoders))
    if select is None:
        raise SelectModelRequired(f'the model {str(source)!r} has several encoders: set select_model to one of {names}')
    if select not in encoders:
        raise ValueError(f'the model {str(source)!r} has no encoder {select!r}: it has {names}')
    return encoders[select]


def load_encoders(
    source: str | Path,
    *,
    pooling: str | None = None,
    pooling_options: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Encoder]:
    """Load all encoders of a model, in evaluation.

    :param source: a directory, which may be written `local-dir:…`: of sentence-transformers, transformers, timm,
        open_clip, or one that an encoder wrote, or one of several such; or a name: of the table in
        :mod:`finetuner.models`, of torchvision, of timm (`timm/<name>`), of open_clip (`<architecture>::<pretrained>`),
        or a hub id of any of these libraries.
    :param pooling: as the entry of `options`, which it overrides.
    :param pooling_options: as the entry of `options`, which they override.
    :param max_length: the longest text in tokens.
    :param options: `model_options` of a fit, see :func:`finetuner.models.check_options`.
    :return: `model` alone, or `clip-text` and `clip-vision`.
    :raises ValueError: the model is not to be found, unsafe or not supported, or an option is unknown or does not fit.
    """
    library, location = find_library(source)
    given = {'pooling': pooling, 'pooling_options': pooling_options}
    given = {**(options or {}), **{name: value for name, value in given.items() if value is not None}}
    if isinstance(location, Path) and library in ('pointnet', 'mlp'):
        if max_length is not None:
            raise ValueError(f'max_length is {max_length}: it is for models that take texts')
        return {MODEL: _open_saved(location, library, given)}
    checked = check_options(library, given)
    collated = checked.pop('max_length', None)
    max_length = collated if max_length is None else max_length
    if library in _CLIP:
        return _load_clip(location, checked, max_length)
    if library == 'transformers':
        from finetuner.inference.text_encoder import TextEncoder

        return {MODEL: TextEncoder.load(location, max_length=max_length, **checked)}
    if max_length is not None:
        raise ValueError(f'max_length is {max_length}: it is for models that take texts')
    if library in ('torchvision', 'timm'):
        from finetuner.inference.image_encoder import ImageEncoder

        return {MODEL: ImageEncoder.load(location, **checked)}
    if library == 'pointnet':
        from finetuner.inference.point_encoder import PointEncoder

        return {MODEL: PointEncoder(**checked).eval()}
    from finetuner.inference.mlp_encoder import MLPEncoder

    return {MODEL: MLPEncoder(**checked).eval()}


def save_encoders(encoders: Mapping[str, Encoder], models_directory: str | Path) -> None:
    """Write the encoders of a model to a folder of models, as an artifact has it.

    :param encoders: one, which gets a directory of its name; or the two of a CLIP model, see
        :func:`finetuner.inference.clip.save_clip`.
    :raises ValueError: there are several that are not the two of one model.
    """
    if len(encoders) == 1:
        for name, encoder in encoders.items():
            encoder.save(Path(models_directory) / name)
        return
    from finetuner.inference.clip import save_clip

    save_clip(encoders, models_directory)


def find_library(source: str | Path) -> tuple[Library, str | Path]:
    """The library that opens a model, and the directory or the name under which it does so.

    :param source: as of :func:`load_encoders`.
    :raises ValueError: it is a directory of something else, or a path where nothing is.
    """
    if isinstance(source, str) and (backbone := find_backbone(source)):  # whatever folders there are
        # texts are found by their own module, which knows of copies that need no download
        return backbone.library, source if backbone.library == 'transformers' else backbone.source
    directory = Path(str(source).removeprefix(_LOCAL)).expanduser()
    if str(source) and directory.is_dir():
        return _of_directory(directory)
    if isinstance(source, Path):
        raise ValueError(f'the model directory {str(source)!r} does not exist')
    if '::' in source:
        return 'open_clip', source
    if found := _image_model(source):
        return found, source
    if source.startswith(_HUB) or source.count('/') == 1:
        return _of_hub(source.removeprefix(_HUB))
    return 'transformers', source


def check_exists(name: str, is_here: bool) -> None:
    """Refuse a name that no model has, without loading any. What cannot be found out passes.

    :param is_here: as of :func:`finetuner.inference.pretrained.check_fetchable`.
    :raises ValueError: there is no such model.
    """
    is_directory = Path(name.removeprefix(_LOCAL)).expanduser().is_dir()
    if not (find_backbone(name) or is_directory or '::' in name or _image_model(name)):
        check_fetchable(name.removeprefix(_HUB), is_here)


def _of_directory(directory: Path) -> tuple[Library, Path]:
    if has_description(directory):
        library = read_description(directory)['library']
        if library not in get_args(Library):
            raise ValueError(f'{directory} was written by the library {library!r}, which is not known here')
        return library, directory
    if (directory / 'modules.json').is_file():
        return 'transformers', directory
    if (directory / 'clip').is_dir() and (directory / 'clip-text').is_dir():
        return 'transformers-clip', directory
    if (directory / 'open_clip_config.json').is_file() and not (directory / 'config.json').is_file():
        return 'open_clip', directory
    if (directory / 'config.json').is_file():
        return _of_config(read_json(directory / 'config.json')) or 'transformers', directory
    inner = [path for path in directory.iterdir() if path.is_dir()]
    if len(inner) == 1:  # the folder of models of an artifact
        return _of_directory(inner[0])
    raise ValueError(f'{directory} holds no model: it has no modules.json, config.json or encoder.json')


def _of_config(config: Any) -> Library | None:
    """The library of a `config.json`; None if it is not one of a model."""
    if not isinstance(config, dict):
        return None
    if isinstance(config.get('architecture'), str):
        return 'timm'
    from finetuner.inference.clip_transformers import MODEL_TYPES

    return 'transformers-clip' if config.get('model_type') in MODEL_TYPES else 'transformers'


def _of_hub(hub_id: str) -> tuple[Library, str]:
    """What a repository of the hub holds, by its files; without a network, what was downloaded before.

    :raises ValueError: no repository can have this name.
    """
    if not _HUB_ID.fullmatch(hub_id):
        raise ValueError(f'{hub_id!r} is no id of a repository: it is written <organisation>/<name>')
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in ('config.json', 'open_clip_config.json'):
        try:
            path = Path(hf_hub_download(hub_id, name))
        except LocalEntryNotFoundError:  # there is no network: the loader of texts says what is wrong
            break
        except EntryNotFoundError:
            continue
        except (OSError, ValueError):
            break
        if name == 'open_clip_config.json':
            return 'open_clip', hub_id
        library = _of_config(read_json(path))
        return library or 'transformers', f'{_HUB}{hub_id}' if library == 'timm' else hub_id
    return 'transformers', hub_id


def _image_model(name: str) -> Library | None:
    # their names have no dashes, others nearly always do: nothing is imported for those
    if not re.fullmatch(r'(timm/)?[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?', name):
        return None
    try:
        from finetuner.inference.image_encoder import find_image_model
    except ModuleNotFoundError as error:
        if error.name not in ('PIL', 'torchvision', 'timm'):
            raise
        return None
    found = find_image_model(name)
    return found[0] if found else None


def _load_clip(location: str | Path, options: Mapping[str, Any], max_length: int | None) -> dict[str, Encoder]:
    from finetuner.inference.clip import is_clip_encoder, load_clip, load_clip_encoder

    if isinstance(location, Path) and is_clip_encoder(location):
        if options or max_length is not None:
            raise ValueError(f'{location} is one half of a CLIP model: it is loaded as it was saved, without options')
        return {MODEL: load_clip_encoder(location)}
    return dict(load_clip(location, options, max_length))


def _open_saved(directory: Path, library: Library, options: Mapping[str, Any]) -> Encoder:
    """A model that has no other library; its options are those with which it was made, but for `augment`."""
    encoder: Encoder
    if library == 'pointnet':
        from finetuner.inference.point_encoder import PointEncoder

        encoder = PointEncoder.load(directory)
    else:
        from finetuner.inference.mlp_encoder import MLPEncoder

        encoder = MLPEncoder.load(directory)
    for name, value in options.items():
        if name == 'augment' and library == 'pointnet':
            setattr(encoder, name, bool(value))
            continue
        attribute = {'l2': 'normalize'}.get(name, name)
        if not hasattr(encoder, attribute) or getattr(encoder, attribute) != value:
            raise ValueError(f'model_options: {name} is {value!r}, but {directory} was made with another')
    return encoder
