"""How the command lines of the client and of training read their options."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

JSON = Annotated[str | None, typer.Option(help='A JSON object.', show_default=False)]
Freeze = Annotated[
    str | None,
    typer.Option(
        metavar='[all|N]',
        help='Train only what is beyond the backbone (with --output-dim), or beyond its first N groups of layers.',
        show_default=False,
    ),
]


def complete_freeze(arguments: list[str]) -> list[str]:
    """The arguments with `--freeze all` where `--freeze` stands alone: an option of click has a value or has none."""
    completed: list[str] = []
    for position, argument in enumerate(arguments):
        completed.append(argument)
        follows = arguments[position + 1 : position + 2]
        if argument == '--freeze' and not any(value == 'all' or value.isdecimal() for value in follows):
            completed.append('all')
    return completed


def parse_freeze(value: str | None) -> bool | int:
    """What `--freeze` means to `fit`.

    :raises ValueError: it is neither 'all' nor a number.
    """
    if value is None or value == 'all':
        return value is not None
    if not value.isdecimal():
        raise ValueError(f"--freeze {value}: give 'all', or how many groups of layers")
    return int(value)


def has_its_own(name: str) -> ValueError:
    """The error that `--options` holds an argument which has an option, or a place, of its own."""
    own = {'train_data': 'it as the first argument', 'experiment_name': '--experiment'}
    return ValueError(f'--options: {name} has an option of its own: give {own.get(name) or _option(name)}')


def _option(name: str) -> str:
    return '--' + name.replace('_', '-')


def json_object(option: str, text: str | None) -> dict[str, Any] | None:
    """The value of an option that is a JSON object.

    :raises ValueError: it is none.
    """
    try:
        value = None if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'--{option} is not JSON: {error}') from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'--{option} is not a JSON object')
    return value
