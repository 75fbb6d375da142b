"""Bodies as JSON, without what JSON does not have and what readers disagree about."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from fastapi.exceptions import HTTPException

MAX_DEPTH = 64
"""Levels of lists and objects in a body."""
MAX_OBJECTS = 200_000
"""Objects in a body: two bytes of it may become a document, which has a thousand in memory."""
MAX_LISTS = 2_000_000
"""Lists in a body: a tensor has many."""
MAX_NAMES = 1_000_000
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def load_json(raw: bytes) -> Any:
    """The value of a body; `{}` of an empty one.

    :raises HTTPException: 400: it is no JSON, has a name twice in one object, a number that is none, half a character,
        or nests too deep. 413: it has too many objects, lists or names.
    """
    _check_counts(raw)
    try:
        # as UTF-8 and nothing else: what was counted is what is read
        value = json.loads(raw.decode('utf-8-sig') or '{}', object_pairs_hook=_object, parse_constant=_constant)
        if b'\\u' in raw:  # an escape may be half a character
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = 'it nests too deep' if isinstance(error, RecursionError) else _reason(error)
        raise HTTPException(400, f'the body is not JSON: {reason}') from error
    if _is_deeper(value, MAX_DEPTH):
        raise HTTPException(400, f'the body nests deeper than {MAX_DEPTH} levels')
    return value


def kind_of(value: Any) -> str:
    """What a value of JSON is, in words."""
    kinds = {list: 'a list', dict: 'an object', str: 'a text', bool: 'true or false', type(None): 'null'}
    return kinds.get(type(value), 'a number')


def _check_counts(raw: bytes) -> None:
    if _excess(raw) and (excess := _excess(STRING.sub(b'', raw))):  # texts may have as many brackets as they like
        raise HTTPException(413, f'the body has more than {excess}: send it in parts, or as protocol buffers')


def _excess(raw: bytes) -> str | None:
    limits = (b'{', MAX_OBJECTS, 'objects'), (b'[', MAX_LISTS, 'lists'), (b':', MAX_NAMES, 'names')
    return next((f'{limit} {what}' for sign, limit, what in limits if raw.count(sign) > limit), None)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f'{twice[:80]!r} occurs twice in one object')
    return found


def _constant(name: str) -> Any:
    raise ValueError(f'{name} is not a number')


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f'it is not UTF-8 at byte {error.start}'
    if isinstance(error, UnicodeEncodeError):
        return 'it has half a character (an unpaired surrogate)'
    return 'a number has too many digits' if 'integer string conversion' in str(error) else str(error)


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    items = value.values() if isinstance(value, dict) else value
    # arrays are lists of many numbers: no call for each
    return any(_is_deeper(item, levels - 1) for item in items if type(item) is dict or type(item) is list)
