"""Memory that was freed goes back to the system, now and then.

glibc keeps what it was given as long as anything lies behind it: of batches of many sizes, more and more.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable

INTERVAL = 30.0
"""Seconds between two times that it is given back: it takes some milliseconds, and so does what is asked for again."""


def give_back_memory(interval: float = INTERVAL) -> None:
    """From now on, have this process return what it does not use. Does nothing where the C library is not glibc."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        threading.Thread(target=_repeat, args=(trim, interval), name='memory', daemon=True).start()


def _repeat(trim: Callable[[ctypes.c_size_t], int], interval: float) -> None:
    while True:
        time.sleep(interval)
        trim(ctypes.c_size_t(0))
