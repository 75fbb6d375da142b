"""What an attempt prints goes to a file first, and from there into the run's log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry import Registry
from registry.logs import MAX_PIECE

logger = logging.getLogger(__name__)

SECONDS = 1.0
TAIL = 4096


class LogSender:
    """Sends what is new in the file of an attempt. Several may do so for one attempt, one after the other."""

    def __init__(self, registry: Registry, run_id: str, lease: str, path: Path):
        self._registry, self._run_id, self._lease, self._path = registry, run_id, lease, path
        self._sent: int | None = None

    def send(self) -> None:
        """Send all that is there."""
        if not self._path.exists():
            return
        if self._sent is None:
            self._sent = self._registry.sent_log(self._run_id, self._lease)
        with self._path.open('rb') as file:
            file.seek(self._sent)
            while data := file.read(MAX_PIECE):
                self._registry.append_log(self._run_id, self._lease, self._sent, data)
                self._sent += len(data)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send every second within. What is printed at the end is left to the guard of the attempt."""
        stop = threading.Event()

        def keep_sending() -> None:
            while not stop.wait(SECONDS):
                try:
                    self.send()
                except Exception:  # the registry is away: it is sent later, and not logged for ever
                    self._sent = None

        thread = threading.Thread(target=keep_sending, name='log', daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def last_line(path: Path) -> str:
    """The last line of a log that says something, cut; empty if there is none."""
    if not path.exists():
        return ''
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = [line.strip() for line in file.read().decode(errors='replace').splitlines()]
    return next((line for line in reversed(lines) if line), '')[:300]
