"""What may go into a JSON column, and into a text column."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from finetuner.excepts import RegistryError

MAX_JSON = 64 << 10
"""Bytes of what a client tells beside the fields that are known: `meta` and its like."""


def plain(value: Any, place: str, *, lossy: bool = False) -> Any:
    """A copy of `value` made of what JSON knows: numpy scalars become numbers, tuples lists.

    :param place: what the value is, for the message.
    :param lossy: NaN and infinity become None (a diverged run must still be able to tell); else they are refused.
    :raises RegistryError: JSON cannot hold it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        if lossy:
            return None
        raise RegistryError(f'{place} is {value}, which JSON cannot hold')
    if isinstance(value, Mapping):
        return {clean(str(name)): plain(item, f'{place}[{name!r}]', lossy=lossy) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f'{place}[{index}]', lossy=lossy) for index, item in enumerate(value)]
    raise RegistryError(f'{place} is a {type(value).__name__}, which JSON cannot hold')


def check_size(value: Any, place: str) -> None:
    """
    :param value: as `plain` returns it.
    :raises RegistryError: it is more JSON than is kept of a client in one place.
    """
    if (size := json_size(value)) > MAX_JSON:
        raise RegistryError(f'{place} has {size} bytes of JSON: at most {MAX_JSON} are taken')


def json_size(value: Any) -> int:
    """The bytes of `value` as JSON in UTF-8."""
    return len(json.dumps(value, ensure_ascii=False).encode())


def check_description(text: str) -> str:
    """Return `text` if it can be kept as it is.

    :raises RegistryError: it has a character that databases refuse.
    """
    if '\0' in text:
        raise RegistryError('a description cannot hold the character U+0000')
    return text


def clean(text: str) -> str:
    """`text` without what databases refuse: NUL, and halves of characters."""
    return text.replace('\0', '\ufffd').encode(errors='replace').decode()
