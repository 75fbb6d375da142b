"""Opening the registry when an executor starts."""

from __future__ import annotations

from logging import Logger

from registry import Registry
from training.errors import persistently


def open_registry(logger: Logger) -> Registry:
    """Open the registry, also if its database comes up after this: it is waited for, for ten minutes.

    :raises RegistryError: the database cannot be used, and waiting does not help.
    :raises UnavailableError: it did not come.
    """
    return persistently(Registry.open, tell=lambda error: logger.warning(f'{error}: trying again'))
