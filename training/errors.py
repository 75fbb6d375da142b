"""Why a run failed, and whether another attempt may succeed."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import psutil
from sqlalchemy.exc import DBAPIError

from training.memory import Footprint, machine_limit, out_of_memory
from training.run_folder import FolderInUse

logger = logging.getLogger(__name__)

Answer = TypeVar('Answer')

PATIENCE = 600.0  # seconds
PAUSE = 2.0
PASSING = {errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EDQUOT, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}
OTHER_PROCESS = ('gloo', 'nccl', 'connection closed by peer', 'connection reset by peer')


def persistently(call: Callable[[], Answer], patience: float = PATIENCE) -> Answer:
    """What the call returns, tried again for a while if the database is away.

    :raises Exception: what the call raised at last.
    """
    begun = time.monotonic()
    while True:
        try:
            return call()
        except Exception as error:
            if not is_passing(error) or time.monotonic() - begun > patience:
                raise
            logger.warning('The registry does not answer: trying again')
            time.sleep(PAUSE)


def is_passing(error: BaseException) -> bool:
    """Whether the same attempt may succeed at another time or place: the fault is not the run's."""
    if isinstance(error, DBAPIError | ConnectionError | TimeoutError | FolderInUse):
        return True
    if isinstance(error, OSError):
        return error.errno in PASSING
    text = str(error).lower()
    # one of several processes was killed
    return isinstance(error, RuntimeError) and any(name in text for name in OTHER_PROCESS)


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or 'out of memory' in text or "can't allocate memory" in text


def reason(error: Exception, footprint: Footprint | None = None) -> str:
    """Why a run failed, in one sentence.

    :param footprint: of the training, if it came so far.
    """
    text = str(error).strip().splitlines()
    if is_out_of_memory(error):
        what = text[0].rstrip('.') if text else type(error).__name__
        return out_of_memory(footprint, _limit(), what)
    if not text:
        return type(error).__name__
    return text[0] if isinstance(error, ValueError | FloatingPointError) else f'{type(error).__name__}: {text[0]}'


def _limit() -> float:
    """Bytes that this process may take, of the memory that it ran out of."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved()
    return min(machine_limit(), psutil.virtual_memory().available + psutil.Process().memory_info().rss)
