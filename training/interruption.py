"""Ending a training between two batches, where its state is whole, when a signal asks for it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(SystemExit):
    """The end of a process that was asked to end, where the state of the training is whole."""


class Interruption:
    """SIGTERM ends the process at once, but for what is `deferred`: that is finished first. One that comes after `exit`
    is noted as `repeated`, and cuts nothing off that is saved on the way out.

    Nothing is changed in the process before `install` is called.
    """

    def __init__(self) -> None:
        self.requested = self.repeated = False
        self._busy = self._is_ending = False

    def install(self) -> Interruption:
        signal.signal(signal.SIGTERM, self._on_signal)
        return self

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal that comes within is noted as `requested`."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def exit(self) -> None:
        """End the process as the signal would have."""
        self._is_ending = True
        raise Interrupted(128 + signal.SIGTERM)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_ending:
            self.repeated = True
        elif self._busy:
            self.requested = True
        else:
            raise SystemExit(128 + number)
