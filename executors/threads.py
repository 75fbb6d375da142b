"""Work of the gateway that grows with a message: beside its event loop, where it would hold others up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

QUICK_BYTES = 8 << 10
"""Of a message that is read or written in less time than a thread takes to get to work."""
QUICK_OBJECTS, QUICK_VALUES = 16, 64
"""Of JSON that is: a few bytes of it may become a document."""

Given = ParamSpec('Given')
Result = TypeVar('Result')


async def aside(at_once: bool, function: Callable[Given, Result], *given: Given.args, **named: Given.kwargs) -> Result:
    """What a function returns: called at once, as it is quick, or in a thread."""
    if at_once:
        return function(*given, **named)
    return await asyncio.to_thread(function, *given, **named)


def is_quick(raw: bytes) -> bool:
    """Whether JSON is read, and becomes documents, in no time."""
    return len(raw) <= QUICK_BYTES and raw.count(b'{') <= QUICK_OBJECTS and raw.count(b',') <= QUICK_VALUES
