"""`metadata.yml`: which models an artifact holds, and the size and digest of each of its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from finetuner.excepts import ArtifactError

FORMAT_VERSION = 1
METADATA = 'metadata.yml'
CONFIG = 'config.yml'
METRICS = 'metrics.yml'
MAX_YAML = 8 << 20
# models that take their weights from another folder of `models/`
SHARED = {'clip-text': 'clip', 'clip-vision': 'clip'}

_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,199}')
# what means something else on Windows, control characters, halves of characters
_UNSAFE = re.compile('[\\\\:\x00-\x1f\x7f\ud800-\udfff]')
_SHA256 = re.compile(r'[0-9a-f]{64}')


@dataclass(frozen=True)
class ModelInfo:
    """What one model of an artifact does.

    :param dim: the length of its embeddings.
    :param max_length: the longest text in tokens, special ones included; the rest is cut off. None of other content.
    :param task: what is searched with what.
    :param preprocess_types: the kinds of content that it takes.
    :param export: how the ONNX model was made and measured, plain values.
    """

    dim: int
    max_length: int | None = None
    task: str = 'text-to-text'
    preprocess_types: tuple[str, ...] = ('text',)
    export: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def modality(self) -> str:
        """The kind of content that it takes: the first of `preprocess_types`."""
        return self.preprocess_types[0]


@dataclass(frozen=True)
class FileInfo:
    """:param size: in bytes.
    :param sha256: in hexadecimal digits.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class Metadata:
    """The checked content of `metadata.yml`; `files` has the path of every other file, relative and with `/`."""

    name: str
    models: dict[str, ModelInfo]
    files: dict[str, FileInfo]

    def to_dict(self) -> dict[str, Any]:
        models = {
            name: asdict(info) | {'preprocess_types': list(info.preprocess_types)} for name, info in self.models.items()
        }
        files = {path: asdict(info) for path, info in self.files.items()}
        return {'format_version': FORMAT_VERSION, 'name': self.name, 'models': models, 'files': files}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Metadata:
        """:raises ArtifactError: the format version is unknown, or something is missing or of the wrong kind."""
        version = content.get('format_version')
        if type(version) is not int or version != FORMAT_VERSION:
            raise ArtifactError(
                f'the artifact has format version {version!r}, and this finetuner reads version {FORMAT_VERSION}'
                + (': update finetuner' if isinstance(version, int) and version > FORMAT_VERSION else '')
            )
        models = {check_name('model', name): _model(name, info) for name, info in _mapping(content, 'models').items()}
        files = {check_path(path): _file(path, info) for path, info in _mapping(content, 'files').items()}
        for required in (CONFIG, METRICS):
            if required not in files:
                raise ArtifactError(f'{METADATA} does not list {required}')
        if not models:
            raise ArtifactError(f'{METADATA} lists no model')
        for name in models:
            if not any(path.startswith(f'models/{name}/') for path in files):
                raise ArtifactError(f'{METADATA} lists the model {name!r} and no file of it')
            if SHARED.get(name) in models:
                raise ArtifactError(
                    f'{METADATA} lists a model {SHARED[name]!r} beside {name!r}, which needs that folder'
                )
        return cls(check_name('artifact', content.get('name')), models, files)


def check_name(kind: str, name: Any) -> str:
    """Return `name` if it can name an artifact or one of its models, which are folders.

    :raises ArtifactError: it is not 1 to 200 ASCII letters, digits, '.', '_' and '-', a letter or digit first.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise ArtifactError(
        f'{str(name)[:80]!r} cannot be the name of a {kind}: use 1 to 200 letters (a-z, A-Z), digits, ".", "_" and '
        '"-", beginning with a letter or a digit'
    )


def check_path(path: Any) -> str:
    """Return `path` if it names a file inside the artifact on every operating system.

    :raises ArtifactError: it could lead out of the artifact, or means different things on different systems.
    """
    if not isinstance(path, str) or not path:
        raise ArtifactError(f'the artifact has a file without a name: {str(path)[:80]!r}')
    shown = repr(path if len(path) <= 200 else path[:200] + '…')
    if path.startswith('/') or path[1:2] == ':':
        raise ArtifactError(f'the artifact has a file with an absolute path, which is unsafe: {shown}')
    if _UNSAFE.search(path):
        raise ArtifactError(f'the artifact has a file with a backslash, colon or odd character in its path: {shown}')
    parts = path.split('/')
    if '..' in parts:
        raise ArtifactError(f'the artifact has a file whose path leads out of it, which is unsafe: {shown}')
    if '' in parts or '.' in parts:
        raise ArtifactError(f'the artifact has a file whose path has an empty part or a dot: {shown}')
    if len(path.encode()) > 1000 or any(len(part.encode()) > 255 for part in parts):
        raise ArtifactError(f'the artifact has a file with a path that is too long: {shown}')
    return path


def dump_yaml(content: Mapping[str, Any], file: str) -> bytes:
    """The YAML of plain values, the same bytes for equal content.

    :raises ArtifactError: a value is not plain (numbers, texts, booleans, None, lists, dicts).
    """
    try:
        return yaml.dump(dict(content), Dumper=_Dumper, allow_unicode=True, width=120).encode()
    except (yaml.YAMLError, RecursionError) as error:
        raise ArtifactError(f'{file} cannot hold a value of this kind: {str(error)[:200]}') from error


def load_yaml(content: bytes, file: str) -> dict[str, Any]:
    """Read YAML of plain values.

    :raises ArtifactError: it is too long, not valid, not a mapping, or has tags (`!!python/...`) or aliases.
    """
    if len(content) > MAX_YAML:
        raise ArtifactError(f'{file} is larger than {MAX_YAML >> 20} MiB')
    try:
        value = yaml.load(content, Loader=_Loader)
    except yaml.constructor.ConstructorError as error:
        raise ArtifactError(f'{file} is unsafe YAML: {error.problem} {_place(error)}') from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArtifactError(f'{file} is not valid YAML: {" ".join(str(error).split())[:300]}') from error
    if not isinstance(value, dict):
        raise ArtifactError(f'{file} is not a mapping of names to values')
    return value


class _Loader(yaml.SafeLoader):
    """Plain values only. An alias could make a short file mean billions of values, and nothing of ours writes one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, 'aliases are not allowed', mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _place(error: yaml.constructor.ConstructorError) -> str:
    return f'(line {error.problem_mark.line + 1})' if error.problem_mark else ''


def _mapping(content: Mapping[str, Any], key: str) -> dict[Any, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise ArtifactError(f'{METADATA} has no mapping {key!r}')
    return value


def _model(name: str, info: Any) -> ModelInfo:
    try:
        types, export = tuple(info['preprocess_types']), info.get('export', {})
        model = ModelInfo(info['dim'], info['max_length'], info['task'], types, export)
    except (KeyError, TypeError) as error:
        raise ArtifactError(f'{METADATA} describes the model {name!r} incompletely: {error}') from error
    if not _is_count(model.dim) or not (model.max_length is None or _is_count(model.max_length)):
        raise ArtifactError(f'{METADATA}: dim and max_length of the model {name!r} must be positive integers')
    if not all(isinstance(text, str) for text in (model.task, *model.preprocess_types)):
        raise ArtifactError(f'{METADATA}: task and preprocess_types of the model {name!r} must be texts')
    if 'text' in model.preprocess_types and model.max_length is None:
        raise ArtifactError(f'{METADATA} gives no max_length of the model {name!r}, which takes texts')
    if not model.preprocess_types:
        raise ArtifactError(f'{METADATA}: preprocess_types of the model {name!r} are empty')
    if not isinstance(model.export, dict):
        raise ArtifactError(f'{METADATA}: export of the model {name!r} must be a mapping')
    return model


def _file(path: str, info: Any) -> FileInfo:
    size, sha256 = (info.get('size'), info.get('sha256')) if isinstance(info, dict) else (None, None)
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ArtifactError(f'{METADATA} gives no size and sha256 of the file {path!r}')
    return FileInfo(size, sha256)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
