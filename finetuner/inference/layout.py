"""What a model directory says about itself, read without torch: pooling, dense layers, normalization, length limit.

A directory with `modules.json` is laid out as sentence-transformers writes it; one without is a plain transformers
model, for which mean pooling is the convention.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

POOLINGS = ('mean', 'cls', 'max', 'lasttoken', 'gem')
GEM_OPTIONS = {'p': 3.0, 'eps': 1e-6}
# beside the config of the pooling: sentence-transformers, which has no such pooling, takes no other keys there
GEM_FILE = 'gem.json'

_POOLING_FLAGS = {
    'pooling_mode_cls_token': 'cls',
    'pooling_mode_max_tokens': 'max',
    'pooling_mode_mean_tokens': 'mean',
    'pooling_mode_mean_sqrt_len_tokens': 'mean_sqrt_len_tokens',
    'pooling_mode_weightedmean_tokens': 'weightedmean',
    'pooling_mode_lasttoken': 'lasttoken',
}


@dataclass(frozen=True)
class Layout:
    """:param transformer: the directory of the backbone and its tokenizer.
    :param pooling: one of :data:`POOLINGS`.
    :param pooling_options: what it takes; see :func:`check_pooling`.
    :param dense: the directories of dense layers after pooling, in order.
    :param normalize: whether embeddings are scaled to L2 norm 1.
    :param max_length: the longest input in tokens, special ones included; None where the directory does not say.
    :param do_lower_case: whether texts are lower-cased before the tokenizer's own normalization.
    :param prompts: named prefixes that sentence-transformers offers; none is ever added here.
    """

    transformer: Path
    pooling: str
    pooling_options: dict[str, float]
    dense: tuple[Path, ...]
    normalize: bool
    max_length: int | None
    do_lower_case: bool
    prompts: dict[str, str]


def check_pooling(pooling: str, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, float]]:
    """The name of a pooling as it is spelled here, and all its options, those left out by default.

    GeM, the generalized mean, takes `p` (1 is the mean, the larger the nearer to the maximum, default 3) and `eps`, to
    which smaller and negative values are raised (default 1e-6). The others take none.

    :param pooling: one of :data:`POOLINGS`, in any case.
    :raises ValueError: the pooling, an option or its value is not known; the message names it.
    """
    name = pooling.lower()
    if name not in POOLINGS:
        raise ValueError(f'unknown pooling {pooling!r}: it is one of {", ".join(POOLINGS)}')
    defaults = GEM_OPTIONS if name == 'gem' else {}
    if unknown := sorted(set(options or {}) - set(defaults)):
        known = f'it takes {" and ".join(defaults)}' if defaults else 'it takes none'
        raise ValueError(f'unknown pooling_options {", ".join(unknown)} of {name} pooling: {known}')
    for key, value in (options or {}).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f'the pooling option {key} is {value!r}: it must be a positive number')
    return name, {key: float((options or {}).get(key, default)) for key, default in defaults.items()}


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is not valid JSON: {error}') from error


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def find_weights(directory: Path) -> Path:
    """The file of a directory's weights, or the index of several.

    :raises ValueError: there are none in safetensors format.
    """
    for name in ('model.safetensors', 'model.safetensors.index.json'):
        if (directory / name).is_file():
            return directory / name
    pickled = ' (pytorch_model.bin is pickled and can run code: convert it first)'
    raise ValueError(
        f'{directory} has no weights in safetensors format' + pickled * (directory / 'pytorch_model.bin').is_file()
    )


def read_layout(directory: Path) -> Layout:
    """Read the layout of a model directory.

    :raises ValueError: the directory holds no model, or modules that are not supported.
    """
    if not (directory / 'modules.json').is_file():
        if not (directory / 'config.json').is_file():
            raise ValueError(f'{directory} holds no model: neither modules.json nor config.json is there')
        return Layout(directory, 'mean', {}, (), False, None, False, {})
    modules = [(module['type'].rpartition('.')[2], directory / module['path']) for module in _modules(directory)]
    kinds = [kind for kind, _ in modules]
    expected = ['Transformer', 'Pooling', *['Dense'] * kinds.count('Dense'), *['Normalize'] * ('Normalize' in kinds)]
    if kinds != expected:
        raise ValueError(
            f'{directory / "modules.json"} lists the modules {", ".join(kinds)}: supported are '
            'Transformer, Pooling, any number of Dense and an optional Normalize, in this order'
        )
    transformer = modules[0][1]
    limits = _read_optional(transformer / 'sentence_bert_config.json')
    sentence = _read_optional(directory / 'config_sentence_transformers.json')
    if sentence.get('default_prompt_name'):
        raise ValueError(
            f'{directory} puts the prompt {sentence["default_prompt_name"]!r} before every text by default: '
            'models with a default prompt are not supported'
        )
    pooling, pooling_options = _pooling(modules[1][1] / 'config.json')
    return Layout(
        transformer=transformer,
        pooling=pooling,
        pooling_options=pooling_options,
        dense=tuple(path for kind, path in modules if kind == 'Dense'),
        normalize='Normalize' in kinds,
        max_length=limits.get('max_seq_length'),
        do_lower_case=bool(limits.get('do_lower_case', False)),
        prompts={name: prompt for name, prompt in (sentence.get('prompts') or {}).items() if prompt},
    )


def _modules(directory: Path) -> list[dict[str, Any]]:
    modules = read_json(directory / 'modules.json')
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and isinstance(module.get('type'), str) and isinstance(module.get('path'), str)
        for module in modules
    ):
        raise ValueError(f'{directory / "modules.json"} is not a list of modules with a type and a path each')
    for path in (PurePosixPath(module['path']) for module in modules):
        if path.is_absolute() or '..' in path.parts:
            raise ValueError(f'{directory / "modules.json"} names the path {str(path)!r}, which leads out of the model')
    return modules


def _read_optional(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f'{path} is not a JSON object')
    return content


def _pooling(path: Path) -> tuple[str, dict[str, float]]:
    config = read_json(path)
    modes = config.get('pooling_mode') or [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)] or 'mean'
    names = [modes] if isinstance(modes, str) else list(modes)
    if len(names) != 1 or names[0] not in POOLINGS:
        raise ValueError(f'{path} asks for the pooling {" + ".join(names)}: supported is one of {", ".join(POOLINGS)}')
    return check_pooling(names[0], _read_optional(path.with_name(GEM_FILE)) if names[0] == 'gem' else None)
