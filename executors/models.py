"""Which models on this machine clients may name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from executors.sources import allowed_roots
from finetuner import settings
from finetuner.excepts import ParameterError
from finetuner.inference.backbones import check_exists
from finetuner.models import find_backbone, similar_names
from training.config import FitConfig
from training.launchers.ray_cluster import ADDRESS

VARIABLE = 'FINETUNER_MODEL_ROOTS'
PREFIXES = ('local-dir:', 'hf-hub:')


def check_model(config: FitConfig) -> None:
    """Refuse a model directory, or a file of weights, that is not below one of `FINETUNER_MODEL_ROOTS`.

    :raises ParameterError: it is not, or leads out of them by a link. It is not told whether it exists.
    """
    roots = [root.resolve() for root in allowed_roots(None, VARIABLE)]
    for argument, name in _named_paths(config):
        if not _is_below(name, roots):
            raise ParameterError(
                f'{argument}: {name!r} is not below a folder whose models this service may read '
                f'({", ".join(map(str, roots)) or "none"}): its operator allows folders with {VARIABLE}. Names and hub '
                'ids need no folder'
            )


def check_model_exists(config: FitConfig) -> None:
    """Refuse a model that is certainly not to be had, before data is sent and a run waits for it.

    :raises ParameterError: there is no such model.
    """
    if config.model_artifact is not None:
        return
    try:
        check_exists(config.model, is_here=not os.environ.get(ADDRESS))
    except ValueError as error:
        near = similar_names(config.model)
        hint = f'. Did you mean {" or ".join(near)}?' if near else ''
        raise ParameterError(str(error).splitlines()[0] + hint) from error


def _named_paths(config: FitConfig) -> Iterator[tuple[str, str]]:
    """The arguments that name files or folders, in whichever way the libraries take them, without their prefixes."""
    if find_backbone(config.model) is None:
        whole = config.model
        while whole.startswith(PREFIXES):
            whole = whole.partition(':')[2]
        for name in (whole, whole.partition('::')[2]):
            if _is_path(name):
                yield 'model', name
    weights = (config.model_options or {}).get('weights')
    if weights is not None and _is_path(str(weights)):
        yield 'model_options.weights', str(weights)


def _is_path(name: str) -> bool:
    try:
        return name.startswith(('/', '.', '~')) or bool(name) and Path(name).exists()
    except (OSError, ValueError):  # too long for a path, or with a null byte
        return True


def _is_below(name: str, roots: Sequence[Path]) -> bool:
    """Whether a path, with links followed, lies in a root, and not in what the service keeps for all accounts."""
    try:
        real = Path(name).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        return False
    kept = settings.home().expanduser().resolve()
    return any(real.is_relative_to(root) for root in roots) and not real.is_relative_to(kept)
