"""Opening databases when an executor starts."""

from __future__ import annotations

from collections.abc import Callable
from logging import Logger
from typing import TypeVar

from executors.lifetime import ended_by_signals
from registry import Registry
from training.errors import persistently

Opened = TypeVar('Opened')


def open_registry(logger: Logger) -> Registry:
    """Open the registry, also if its database comes up after this: it is waited for, for ten minutes.

    :raises RegistryError: the database cannot be used, and waiting does not help.
    :raises UnavailableError: it did not come.
    """
    return open_database(Registry.open, logger)


def open_database(open_it: Callable[[], Opened], logger: Logger) -> Opened:
    """The same for any database: what `open_it` returns, once it does."""
    with ended_by_signals():
        return persistently(open_it, tell=lambda error: logger.warning(f'{error}: trying again'))
