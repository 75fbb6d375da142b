"""Identifiers: the ids that we make, and the rule for the names that users give."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from difflib import get_close_matches

from finetuner.excepts import RegistryError

NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,199}')
ID = re.compile(r'[0-9a-f]{24}')


def new_id() -> str:
    """A random id of 24 hexadecimal digits, not all of them 0-9 and e: YAML and Jina would read a number."""
    while not set('abcdf') & set(value := secrets.token_hex(12)):
        continue
    return value


def check_name(kind: str, name: object) -> str:
    """Return `name` if it can name a thing of this `kind` ('run', 'data set', ...).

    :raises RegistryError: it is not 1 to 200 ASCII letters, digits, '.', '_' and '-', a letter or digit first.
    """
    if isinstance(name, str) and NAME.fullmatch(name):
        return name
    shown = repr(name) if len(repr(name)) <= 80 else f'{repr(name)[:80]}…'
    raise RegistryError(
        f'{shown} is not a valid {kind} name: use 1 to 200 letters (a-z, A-Z), digits, ".", "_" and "-", '
        'beginning with a letter or a digit'
    )


def check_id(kind: str, value: object) -> str:
    """Return `value` if it has the shape of our ids.

    :raises RegistryError: it has not.
    """
    if isinstance(value, str) and ID.fullmatch(value):
        return value
    raise RegistryError(f'{str(value)[:80]!r} is not the id of a {kind}: ids are 24 hexadecimal digits')


def known(name: str, names: Iterable[str]) -> str:
    """The end of a 'there is no ...' sentence: the names that look like `name`, or else the first few."""
    names = sorted(names)
    if not names:
        return 'there are none yet'
    near = get_close_matches(name[:200], names, n=5, cutoff=0.5)
    if near:
        return f'similar names: {", ".join(near)}'
    return f'there are: {", ".join(names[:10])}{", …" if len(names) > 10 else ""}'
