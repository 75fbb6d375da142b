"""The files of methods: those that are shipped here, and those of the operator."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from finetuner.excepts import NotFoundError, ParameterError
from training.losses import unknown_name
from training.methods.method import Method

VARIABLE = 'FINETUNER_METHODS'
SHIPPED = Path(__file__).parent
MAX_BYTES = 1 << 20


def method_folders() -> list[Path]:
    """Where methods are looked for, the first found of a name counts: `FINETUNER_METHODS` (folders, separated by ':'),
    then the shipped ones."""
    named = [name for name in os.environ.get(VARIABLE, '').split(os.pathsep) if name]
    return [*(Path(name).expanduser().absolute() for name in named), SHIPPED]


def find_methods(folders: Sequence[Path] | None = None) -> dict[str, Method]:
    """All methods by their names.

    :raises ParameterError: a file is malformed, or two of one folder have one name.
    """
    found: dict[str, Method] = {}
    for folder in method_folders() if folders is None else folders:
        here: dict[str, Path] = {}
        for path in sorted(folder.glob('*.yml')):
            method = read_method(path)
            if method.name in here:
                raise ParameterError(f'{path} and {here[method.name]} both hold the method {method.name!r}')
            here[method.name] = path
            found.setdefault(method.name, method)
    return found


def load_method(name: str, folders: Sequence[Path] | None = None) -> Method:
    """The method of this name.

    :raises NotFoundError: there is none.
    :raises ParameterError: a file is malformed.
    """
    methods = find_methods(folders)
    if name not in methods:
        raise NotFoundError(unknown_name('fine-tuning method', name[:100], methods or ['none: there are none']))
    return methods[name]


def read_method(path: Path) -> Method:
    """
    :raises ParameterError: the file is no YAML, or says something that is unknown or wrong; the message names it.
    """
    try:
        with path.open('rb') as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ParameterError(f'{path} cannot be read: {error.strerror}') from error
    if len(raw) > MAX_BYTES:
        raise ParameterError(f'{path} is larger than {MAX_BYTES >> 20} MiB: that is no method')
    try:
        values = yaml.load(raw, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f'{path} is no YAML: {" ".join(str(error).split())}') from error
    if not isinstance(values, dict):
        raise ParameterError(f'{path} is no method: it holds no mapping of names to values')
    try:
        return Method.model_validate(values)
    except ValidationError as error:
        raise ParameterError(f'{path}: {"; ".join(_sentence(dict(found)) for found in error.errors())}') from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, which YAML lets the second win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f'{key.value!r} is there twice', key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-5, without a point, as a text
_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'[-+]?\d+(\.\d*)?[eE][-+]?\d+$'), list('-+0123456789')
)


def _sentence(found: dict) -> str:
    place = '.'.join(str(part) for part in found['loc'])
    if found['type'] == 'extra_forbidden':
        return f'{place!r} is unknown'
    if found['type'] == 'missing':
        return f'{place!r} is missing'
    reason = str(found['ctx']['error']) if found['type'] == 'value_error' else found['msg']
    return f'{place}: {reason}' if place else reason
