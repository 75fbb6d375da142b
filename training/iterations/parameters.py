"""Values of a search space: how they are called, written down as texts, and read again as what they were."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from training.methods.method import Range, Space

Parameters = dict[str, Any]
"""By argument, as `Method.config` takes them."""


def name_of(parameters: Mapping[str, Any]) -> str:
    """The sha256, hexadecimal, of 'name: value / name: value' in the order of the names."""
    text = ' / '.join(f'{name}: {value}' for name, value in sorted(parameters.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def write(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Each value as JSON."""
    return {name: json.dumps(value) for name, value in parameters.items()}


def read(space: Space, texts: Mapping[str, str]) -> Parameters | None:
    """The values with their types again; None if one is missing, or is not one that the space allows now."""
    found: Parameters = {}
    for name, allowed in space.items():
        try:
            value = json.loads(texts[name])
        except (KeyError, ValueError):
            return None
        if not _is_allowed(value, allowed):
            return None
        found[name] = float(value) if isinstance(allowed, Range) else value
    return found


def middle(space: Space) -> Parameters:
    """Where to begin if nothing is known: the middle of each range, and of each list."""
    return {name: _middle(allowed) for name, allowed in space.items()}


def _is_allowed(value: Any, allowed: Range | list[Any]) -> bool:
    if isinstance(allowed, Range):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and allowed.low <= value <= allowed.high
    return any(type(value) is type(choice) and value == choice for choice in allowed)


def _middle(allowed: Range | list[Any]) -> Any:
    if isinstance(allowed, Range):
        return math.sqrt(allowed.low * allowed.high) if allowed.log else (allowed.low + allowed.high) / 2
    return allowed[(len(allowed) - 1) // 2]
