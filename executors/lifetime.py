"""Executors and gateway end with the Flow that started them, and a Flow with `finetuner serve`, even if what started
them was killed and could not end them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

from jina import Executor

from executors.drain import drain_at_shutdown
from executors.log_records import log_as_jina_does
from executors.memory import give_back_memory
from executors.refusals import leave_out_refusals

INTERVAL = 1.0
"""Seconds between two looks at the parent."""


def prepare_process(executor: Executor) -> None:
    """What each of our executors asks of the process that it is in, and of Jina's server there."""
    tend_process()
    if name := getattr(executor.runtime_args, 'name', ''):  # else no server runs it
        log_as_jina_does(executor.logger, name)
        leave_out_refusals(name)


def tend_process() -> None:
    """What executors and the gateway ask alike of the process that they are in: once, if they share it."""
    _tend(os.getpid())


@cache
def _tend(process: int) -> None:
    end_with_parent()
    drain_at_shutdown()
    give_back_memory()


def end_with_parent() -> None:
    """From now on, send this process a SIGTERM once its parent is gone. Does nothing where no Flow started it."""
    if multiprocessing.parent_process() is not None and os.getppid() != 1:
        end_with(os.getppid())


def end_with(parent: int) -> None:
    """From now on, send this process a SIGTERM once the process `parent`, which started it, is gone."""
    threading.Thread(target=_watch, args=(parent,), name='lifetime', daemon=True).start()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have a SIGTERM or a SIGINT end the process in here, where an executor is made that may wait long for something.

    Jina's own handlers are called once it is made.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _watch(parent: int) -> None:
    # not PR_SET_PDEATHSIG: that one waits for the thread that started the process, not for its process
    while os.getppid() == parent:
        time.sleep(INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
