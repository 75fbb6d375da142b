"""The result of a run goes to the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetuner.excepts import RegistryError
from registry import Registry
from registry.records import FINISHED
from training.errors import persistently


def finish(
    registry: Registry, run_id: str, artifact: Path, metrics: Any, examples: Any, lease: str, **ending: Any
) -> None:
    """Store the result, also if the registry is away for a while.

    :param ending: further arguments of :meth:`Registry.finish_run`.
    :raises AliasMovedError: the alias that is to name the artifact names another than was thought.
    :raises RegistryError: the run is another's, or has ended.
    """
    try:
        persistently(lambda: registry.finish_run(run_id, artifact, metrics, examples, lease, **ending))
    except RegistryError:
        # perhaps it was stored, and the answer was lost
        if registry.get_run_by_id(run_id).status != FINISHED:
            raise
