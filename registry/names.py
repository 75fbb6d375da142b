"""Identifiers: the ids that we make, and the rule for the names that users give."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from difflib import get_close_matches

from finetuner.excepts import RegistryError

NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,199}')
ALIAS = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,149}@[A-Za-z0-9][A-Za-z0-9._-]{0,49}')
ID = re.compile(r'[0-9a-f]{24}')
NAME_RULE = 'use 1 to 200 letters (a-z, A-Z), digits, ".", "_" and "-", beginning with a letter or a digit'
ALIAS_RULE = (
    'write name@stage, such as support@production, of letters (a-z, A-Z), digits, ".", "_" and "-"; '
    'the name of at most 150, the stage of at most 50'
)
ID_RULE = 'ids are 24 hexadecimal digits'


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
    raise RegistryError(f'{shorten(name)} is not a valid {kind} name: {NAME_RULE}')


def check_alias(alias: object) -> str:
    """Return `alias` if it is one: 'name@stage'.

    :raises RegistryError: it is not.
    """
    if isinstance(alias, str) and ALIAS.fullmatch(alias):
        return alias
    raise RegistryError(f'{shorten(alias)} is not a valid alias: {ALIAS_RULE}')


def check_id(kind: str, value: object) -> str:
    """Return `value` if it has the shape of our ids.

    :raises RegistryError: it has not.
    """
    if isinstance(value, str) and ID.fullmatch(value):
        return value
    raise RegistryError(f'{str(value)[:80]!r} is not the id of a {kind}: {ID_RULE}')


def shorten(value: object) -> str:
    """What a user has given, for a sentence."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f'{shown[:80]}…'


def known(name: str, names: Iterable[str]) -> str:
    """The end of a 'there is no ...' sentence: the names that look like `name`, or else the first few."""
    names = sorted(names)
    if not names:
        return 'there are none yet'
    near = get_close_matches(name[:200], names, n=5, cutoff=0.5)
    if near:
        return f'similar names: {", ".join(near)}'
    return f'there are: {", ".join(names[:10])}{", …" if len(names) > 10 else ""}'
