"""The files of methods: those that are shipped here, and those of the operator."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import ValidationError

from finetuner.excepts import NotFoundError, ParameterError
from training.losses import unknown_name
from training.methods.method import Method

VARIABLE = 'FINETUNER_METHODS'
SHIPPED = Path(__file__).parent
MAX_BYTES = 1 << 20
CLASS = 'class'
"""What names a subclass of :class:`Method` in a file."""
CLAIM = re.compile(r'^name:\s*["\']?([A-Za-z0-9][A-Za-z0-9 ._-]*)', re.MULTILINE)
TOLD, SHORT = 5, 300
"""Files of which is told why they cannot be read, and characters of each reason."""
ALLOWED = {
    'name': 'letters, digits, spaces and ._- that begin with a letter or digit, 100 characters at most',
    'items.http.base': "the URL of a folder, which begins with http:// or https:// and ends with '/', without ? and #",
    'items.s3.bucket': 'the name of a bucket: small letters, digits and .- that begin with a letter or digit, 2 to 63',
    'items.s3.endpoint': 'the URL of the service, which begins with http:// or https://, without a path, ? and #',
}
"""What the patterns of texts allow, by place."""

_importing = threading.Lock()


def method_folders() -> list[Path]:
    """Where methods are looked for, the first found of a name counts: `FINETUNER_METHODS` (folders, separated by ':'),
    then the shipped ones."""
    named = [name for name in os.environ.get(VARIABLE, '').split(os.pathsep) if name]
    return [*(Path(name).expanduser().absolute() for name in named), SHIPPED]


def find_methods(folders: Sequence[Path] | None = None) -> dict[str, Method]:
    """All methods that can be used, by their names."""
    return {name: entry for name, entry in _survey(folders)[0].items() if isinstance(entry, Method)}


def load_method(name: str, folders: Sequence[Path] | None = None) -> Method:
    """The method of this name, whatever is wrong with the files of others.

    :raises NotFoundError: there is none; the message names the files that cannot be read, each with its reason.
    :raises ParameterError: its file is malformed, or two of one folder have this name.
    """
    entries, reasons = _survey(folders)
    entry = entries.get(name)
    if isinstance(entry, Method):
        return entry
    if entry is not None:
        raise ParameterError(entry)
    usable = [known for known, found in entries.items() if isinstance(found, Method)]
    sentence = unknown_name('fine-tuning method', name[:100], usable or ['none: there are none'])
    if reasons:
        rest = [f'and {len(reasons) - TOLD} more'] if len(reasons) > TOLD else []
        told = [reason if len(reason) <= SHORT else f'{reason[:SHORT]}…' for reason in reasons[:TOLD]]
        sentence += f'. Files that cannot be read: {"; ".join(told + rest)}'
    raise NotFoundError(sentence)


def _survey(folders: Sequence[Path] | None) -> tuple[dict[str, Method | str], list[str]]:
    """By name a method, or why its file gives none; and the reasons of all files that give none."""
    found: dict[str, Method | str] = {}
    reasons: list[str] = []
    for folder in method_folders() if folders is None else folders:
        here: dict[str, dict[Path, Method | str]] = {}
        for path in sorted(folder.glob('*.yml')):
            entry = _read_entry(path)
            # a shipped method must not take the place of an own one that is malformed
            name = entry.name if isinstance(entry, Method) else _claimed_name(path)
            if isinstance(entry, str):
                reasons.append(entry)
            if name is not None:
                here.setdefault(name, {})[path] = entry
        twice = {
            name: f'{" and ".join(map(str, files))} all hold the method {name!r}: leave it in one of them'
            for name, files in here.items()
            if len(files) > 1
        }
        reasons += twice.values()
        found = {name: next(iter(files.values())) for name, files in here.items()} | twice | found
    return found, reasons


def _read_entry(path: Path) -> Method | str:
    try:
        return read_method(path)
    except ParameterError as error:
        return str(error)


def _claimed_name(path: Path) -> str | None:
    """The name of the method that a malformed file is for, as far as it can be told."""
    try:
        name = _read_values(path).get('name')
    except ParameterError:  # no YAML
        with suppress(OSError):
            found = CLAIM.search(path.read_bytes()[:MAX_BYTES].decode(errors='replace'))
            return None if found is None else found[1].strip()
        return None
    return name if isinstance(name, str) else None


def read_method(path: Path) -> Method:
    """
    :raises ParameterError: the file is no YAML, says something that is unknown or wrong, or names a class that is not
        to be had; the message names it.
    """
    values = _read_values(path)
    method = _method_class(path, values.pop(CLASS)) if CLASS in values else Method
    try:
        return method.model_validate(values)
    except ValidationError as error:
        raise ParameterError(f'{path}: {"; ".join(_sentence(dict(found)) for found in error.errors())}') from None
    except Exception as error:  # code of the operator
        raise ParameterError(f'{path}: {type(error).__name__}: {error}') from error


def _read_values(path: Path) -> dict[str, Any]:
    """:raises ParameterError: the file is no YAML, or no mapping."""
    try:
        with path.open('rb') as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ParameterError(f'{path} cannot be read: {error.strerror}') from error
    if len(raw) > MAX_BYTES:
        raise ParameterError(f'{path} is larger than {MAX_BYTES >> 20} MiB: that is no method')
    try:
        values = yaml.load(raw, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ParameterError(f'{path} is no YAML: {" ".join(str(error).split())}') from error
    if not isinstance(values, dict):
        raise ParameterError(f'{path} is no method: it holds no mapping of names to values')
    return values


def files_of(method: Method) -> dict[str, str]:
    """What a folder has to hold for the method to be found in it, by file name."""
    values = json.loads(method.model_dump_json(exclude_unset=True))
    if type(method) is Method:
        return {'method.yml': json.dumps(values)}  # JSON is YAML
    file = Path(str(sys.modules[type(method).__module__].__file__))
    values[CLASS] = f'{file.stem}.{type(method).__name__}'
    return {'method.yml': json.dumps(values), file.name: file.read_text(encoding='utf-8')}


def _method_class(path: Path, named: Any) -> type[Method]:
    """The class that a file names: `module.Class`, of a Python file beside it."""
    if not isinstance(named, str) or not re.fullmatch(r'[A-Za-z_]\w*\.[A-Za-z_]\w*', named):
        raise ParameterError(
            f'{path}: class is {named!r}: name a Python file beside this one, and a class in it, as our_shop.OurShop'
        )
    module, _, name = named.partition('.')
    file = path.with_name(f'{module}.py')
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        raise ParameterError(f'{path}: class is of {file}, which cannot be read: {error.strerror}') from error
    with _importing:
        found = getattr(_import(file, changed), name, None)
    if not isinstance(found, type) or not issubclass(found, Method):
        raise ParameterError(f'{path}: {file} has no class {name} that is derived from training.methods.Method')
    _check_overrides(file, found)
    return found


def _check_overrides(file: Path, method: type[Method]) -> None:
    """
    :raises ParameterError: the class has something public that is neither in :class:`Method` nor a field: it may be the
        misspelt name of what it was to override, and then nobody would ever call it.
    """
    known = dir(Method)
    for cls in method.__mro__[: method.__mro__.index(Method)]:
        own = vars(cls).keys() - set(known) - method.model_fields.keys() if issubclass(cls, Method) else set()
        for name in sorted(own):
            if not name.startswith('_'):
                near = difflib.get_close_matches(name, [*(value for value in known if value[0] != '_')], n=1)
                hint = f'did you mean {near[0]}? If not, ' if near else ''
                raise ParameterError(
                    f'{file}: the class {cls.__name__} has {name!r}, which Method does not have: {hint}begin its name '
                    'with an underscore if it is your own'
                )


@lru_cache(maxsize=64)
def _import(file: Path, changed: int) -> ModuleType:
    """The module in a file of the operator.

    :param changed: when the file was; one that has changed is imported anew.
    """
    name = f'finetuner_method_{hashlib.sha256(f"{file} {changed}".encode()).hexdigest()[:16]}'
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, 'it ends with .py'
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where types are looked up by their names
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ParameterError(f'{file} cannot be imported: {type(error).__name__}: {error}') from error
    return module


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
    if found['type'] == 'string_pattern_mismatch' and place in ALLOWED:
        return f'{place}: give {ALLOWED[place]}'
    reason = str(found['ctx']['error']) if found['type'] == 'value_error' else found['msg']
    return f'{place}: {reason}' if place else reason
