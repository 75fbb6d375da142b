"""What our packages log in the process of an executor or a gateway comes where Jina's lines come, and as they do."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from jina.logging.formatter import JsonFormatter
from jina.logging.logger import JinaLogger

PACKAGES = ('finetuner', 'registry', 'training', 'executors')


def log_as_jina_does(logger: JinaLogger, name: str) -> None:
    """Give the loggers of our packages the handlers of an executor, in the form that `JINA_LOG_CONFIG` chooses.

    :param name: of the executor in its Flow.
    """
    for package in map(logging.getLogger, PACKAGES):
        package.handlers = list(logger.handlers)
        package.setLevel(logger.logger.level)
    for of_jina in (logger.logger, *loggers_of(name)):
        for handler in of_jina.handlers:
            if isinstance(handler.formatter, JsonFormatter):
                handler.addFilter(_make_whole)


def loggers_of(name: str) -> Iterator[logging.Logger]:
    """Those that Jina has made for an executor and its server."""
    for other, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and (other == name or other.startswith(f'{name}/')):
            yield logger


def _make_whole(record: logging.LogRecord) -> bool:
    """Have the message hold what is said of an error, too: Jina's JSON has the message as it is in the code alone."""
    message = record.getMessage()
    if record.exc_info:
        message += '\n' + logging.Formatter().formatException(record.exc_info)
    record.msg, record.args, record.exc_info = message, None, None
    return True
