"""What a caller did wrong is told to the caller. The log of a service is for what the service did wrong."""

from __future__ import annotations

import logging

from google.protobuf.message import DecodeError

from executors.errors import STATUS
from executors.log_records import loggers_of
from finetuner import excepts
from finetuner.inference.batcher import DEADLINE_PASSED


def leave_out_refusals(name: str) -> None:
    """Have Jina log nothing when an executor refuses a request: anyone could fill the log, with stacks at that.

    :param name: of the executor in its Flow.
    """
    for logger in loggers_of(name):
        logger.addFilter(_is_no_refusal)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, DecodeError):  # of the documents of a message
        return False
    if isinstance(error, TimeoutError) and error.args == (DEADLINE_PASSED,):  # which the caller had set
        return False
    kind = type(error)
    is_ours = kind.__module__ == excepts.__name__
    return not (is_ours and STATUS.get(kind.__name__, 500) < 500)
