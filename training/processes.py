"""The process that a run is in: its device, its seeds, its scratch folder."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, set_seed

from training.config import FitConfig
from training.interruption import Interrupted, Interruption
from training.run_folder import locked

logger = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds for which the others wait for the first process to end."""
ENDED = 'the first process has ended'


def make_accelerator(config: FitConfig) -> Accelerator:
    """The device and precision that the config asks for; without a GPU 'cuda' means the CPU.

    :raises ValueError: the device cannot compute in this precision.
    """
    cpu = config.device == 'cpu' or not torch.cuda.is_available()
    if cpu and config.device != 'cpu':
        logger.warning('There is no GPU: training on the CPU')
    if cpu and config.precision == 'fp16':
        raise ValueError("precision 'fp16' needs a GPU: use 'bf16' or 'fp32'")
    if not cpu and ':' in config.device:
        torch.cuda.set_device(config.device)
    AcceleratorState._reset_state(reset_partial_state=True)  # a process may fit more than once
    # one process prepares, evaluates and exports while the others wait
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    precision = 'no' if config.precision == 'fp32' else config.precision
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[patience])
    if accelerator.num_processes > 1:
        logger.info('Training on %d processes', accelerator.num_processes)
    return accelerator


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed Python, numpy and torch, and have torch choose algorithms that give the same bits every time."""
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    set_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # it would write every new tensor twice, for the sake of code that reads one before it is written
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled


@contextmanager
def scratch(directory: Path, accelerator: Accelerator) -> Iterator[None]:
    """A new folder, shared by all processes, that is gone afterwards, however it ends.

    :raises ValueError: another training is at work in the folder around it.
    """
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(directory.parent):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        accelerator.wait_for_everyone()
        try:
            yield
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def ending_together(interruption: Interruption) -> Iterator[None]:
    """Where all processes are asked to end, the others wait for the first, which has a checkpoint to write and to send:
    when one has ended, torchrun soon kills those that are left. A signal that comes again ends the wait.
    """
    try:
        yield
    except Interrupted:
        if torch.distributed.is_initialized():
            with suppress(RuntimeError):  # the first may have the store with it, and be gone
                _end_together(interruption)
        raise


def _end_together(interruption: Interruption) -> None:
    # no collective: it would wait for a process that is dead or hangs
    store = torch.distributed.distributed_c10d._get_default_store()
    if torch.distributed.get_rank() == 0:
        store.set(ENDED, 'yes')
    deadline = time.monotonic() + PATIENCE
    while not (store.check([ENDED]) or interruption.repeated or time.monotonic() > deadline):
        time.sleep(0.1)
