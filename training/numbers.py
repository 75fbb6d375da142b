"""Numbers that came over the wire, which has no integers: 4 arrives as 4.0."""

from __future__ import annotations

from typing import Any

EXACT = 2**53
"""Up to here a float tells every integer from its neighbours."""


def integers(value: Any) -> Any:
    """The value, with an integer for every whole number, also in dicts and lists."""
    if isinstance(value, dict):
        return {key: integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [integers(item) for item in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT
    return int(value) if is_whole else value
