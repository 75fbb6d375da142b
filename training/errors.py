"""Why a run failed, and whether another attempt may succeed."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psutil
from sqlalchemy import exc

from finetuner.excepts import UnavailableError
from training.memory import Footprint, machine_limit, out_of_memory
from training.run_folder import FolderInUse

logger = logging.getLogger(__name__)

Answer = TypeVar('Answer')

PATIENCE = 600.0  # seconds
PAUSE = 2.0
PASSING = {
    errno.EIO,
    errno.ENOSPC,
    errno.ESTALE,
    errno.EDQUOT,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    # what s3fs makes of an object store that is busy, or fails
    errno.EBUSY,
    errno.EREMOTEIO,
    socket.EAI_AGAIN,
}
OTHER_PROCESS = ('gloo', 'nccl', 'connection closed by peer', 'connection reset by peer')
MLFLOW_PASSING = {'TEMPORARILY_UNAVAILABLE', 'DEADLINE_EXCEEDED', 'REQUEST_LIMIT_EXCEEDED', 'RESOURCE_EXHAUSTED'}
# what MLflow's client says of a server that it does not reach, that fails, or that breaks off: it has no code for them
MLFLOW_UNANSWERED = ('API request to', 'Connection broken')


class CallbackError(RuntimeError):
    """A callback failed, and with it the training; the message begins with its name. Its cause is what went wrong."""


class CallbackRefusal(CallbackError, ValueError):
    """The same, for a reason that the user can mend."""


def persistently(
    call: Callable[[], Answer], patience: float = PATIENCE, tell: Callable[[Exception], None] | None = None
) -> Answer:
    """What the call returns, tried again for a while if the database or the object store is away.

    :param patience: seconds.
    :param tell: is given the first error, default a line in the log without its cause: that names hosts and users, and
        the log of a worker is read by who owns the run.
    :raises Exception: what the call raised at last.
    """
    begun, is_told = time.monotonic(), False
    while True:
        try:
            return call()
        except Exception as error:
            if not is_passing(error) or time.monotonic() - begun > patience:
                raise
            if not is_told:
                (tell or _tell)(error)
            is_told = True
            time.sleep(PAUSE)


def _tell(error: Exception) -> None:
    logger.warning('The registry does not answer: trying again')


def is_passing(error: BaseException) -> bool:
    """Whether the same attempt may succeed at another time or place: the fault is not the run's."""
    error = _cause(error)
    if isinstance(error, UnavailableError | exc.DBAPIError | exc.TimeoutError | FolderInUse):
        return True
    if isinstance(error, (ConnectionError, TimeoutError, *_object_store_errors())):
        return True
    if isinstance(error, _mlflow_errors()):
        return _is_away(error)
    if isinstance(error, OSError):
        return error.errno in PASSING
    text = str(error).lower()
    # one of several processes was killed
    return isinstance(error, RuntimeError) and any(name in text for name in OTHER_PROCESS)


def passing_reason(error: BaseException) -> str:
    """What went wrong, without what a database or an object store says of hosts and users."""
    error = _cause(error)
    if isinstance(error, FolderInUse | UnavailableError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    if isinstance(error, _mlflow_errors()):
        return 'MLflow does not answer'
    return type(error).__name__


def _cause(error: BaseException) -> BaseException:
    """What went wrong in a callback: that it was one, such as that which writes checkpoints, makes no difference."""
    while isinstance(error, CallbackError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _object_store_errors() -> tuple[type[Exception], ...]:
    """Of an S3 that cannot be reached; none where nobody has loaded what speaks to it."""
    botocore = sys.modules.get('botocore.exceptions')
    return () if botocore is None else (botocore.ConnectionError, botocore.HTTPClientError)


def _mlflow_errors() -> tuple[type[Exception], ...]:
    """Of MLflow; none where nobody has loaded it."""
    mlflow = sys.modules.get('mlflow.exceptions')
    return () if mlflow is None else (mlflow.MlflowException,)


def _is_away(error: Any) -> bool:
    """Whether MLflow, or its database, could not answer."""
    if error.error_code == 'INTERNAL_ERROR':
        return any(text in str(error) for text in MLFLOW_UNANSWERED)
    return error.error_code in MLFLOW_PASSING


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
