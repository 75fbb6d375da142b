"""Where the trainer has its runs worked on, and what it allows them, by the environment."""

from __future__ import annotations

import os
from logging import Logger

from executors.supervisor import Launcher
from finetuner.excepts import ParameterError
from registry import Registry
from training.launchers.attempt import RETRIES, Policy
from training.launchers.gpus import find_gpus
from training.launchers.local import LocalLauncher
from training.launchers.ray_cluster import ADDRESS, RayLauncher


def read_policy() -> Policy:
    """
    :raises ParameterError: a variable is no number.
    """
    return Policy(
        max_retries=int(_number('FINETUNER_MAX_RETRIES', RETRIES)),
        max_seconds=_number('FINETUNER_MAX_RUN_SECONDS', 0) or None,
    )


def make_launcher(registry: Registry, logger: Logger, max_runs: int | None, policy: Policy) -> Launcher:
    """The Ray cluster at `FINETUNER_RAY_ADDRESS`, or else this machine.

    :param max_runs: of this machine, without a GPU at the same time, default `FINETUNER_MAX_RUNS` or 1.
    """
    if address := os.environ.get(ADDRESS):
        return RayLauncher(registry, logger, address, policy)
    slots = max_runs or int(_number('FINETUNER_MAX_RUNS', 1))
    return LocalLauncher(registry, logger, slots, find_gpus(), policy)


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float('inf'):
        raise ParameterError(f'{variable} is {text!r}: give a number that is not negative')
    return value
