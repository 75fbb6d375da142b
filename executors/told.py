"""What clients tell freely, such as `meta`: any JSON. Messages carry its numbers as floats."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from training.numbers import EXACT, integers


def check_integers(value: Any, place: str = '') -> Any:
    """
    :raises ValueError: a whole number is too large to arrive as it was sent.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            check_integers(item, f'{place}.{name}' if place else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_integers(item, f'{place}[{index}]')
    elif isinstance(value, int) and abs(value) >= EXACT:
        raise ValueError(f'{place[:200]} is a whole number of more than 53 bits: send it as a text')
    return value


Sent = Annotated[dict[str, Any], AfterValidator(check_integers)]
"""JSON as it goes into a message."""
Told = Annotated[dict[str, Any], BeforeValidator(integers)]
"""The same as it comes out of one: 7 was sent, and not 7.0."""
