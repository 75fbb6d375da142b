"""How much may be under way at once, whichever models it is for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from finetuner.excepts import BusyError
from finetuner.inference.meter import ANSWERED, FAILED, GIVEN_UP, REFUSED, Meter

MAX_ITEMS = 100_000
"""Items of all requests that are under way at once."""


class Admission:
    """Lets requests in as long as there is room.

    :param max_items: that may be under way; a request that finds no room is refused. One that is alone may be larger.
    :param meter: is told of every request.
    """

    def __init__(self, max_items: int = MAX_ITEMS, meter: Meter | None = None):
        self._max_items = max_items
        self._meter = meter or Meter()
        self._lock = threading.Lock()
        self._items = 0

    @property
    def items(self) -> int:
        """Items of all requests that are under way."""
        return self._items

    @contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """Within, `count` items of a request count as under way, and no model is closed.

        :raises BusyError: there is no room for them.
        """
        with self._lock:
            if self._items and self._items + count > self._max_items:
                self._meter.request(count, 0.0, REFUSED)
                raise BusyError(
                    f'{self._items} documents are under way and no more than {self._max_items} may be: try again in a '
                    f'moment, or with fewer than {count}'
                )
            self._items += count
        began, outcome = time.monotonic(), FAILED
        try:
            yield
            outcome = ANSWERED
        except asyncio.CancelledError:
            outcome = GIVEN_UP
            raise
        finally:
            with self._lock:
                self._items -= count
            self._meter.request(count, time.monotonic() - began, outcome)
