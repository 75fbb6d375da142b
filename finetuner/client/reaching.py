"""Which way leads to a service: gRPC or HTTP, whichever is open."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetuner import settings
from finetuner.client.answers import Answer
from finetuner.client.channel import open_channel
from finetuner.client.http_channel import HttpChannel
from finetuner.client.transport import TIMEOUT, Transport, Unreachable, nobody_at

_kept: dict[tuple[int, str], HttpChannel | FirstReachable] = {}
_lock = threading.Lock()


def open_transport(host: str) -> Transport:
    """The one transport of this process to `host`; a forked child gets its own.

    :param host: one address or several, as `finetuner.settings.addresses` reads them.
    :raises ValueError: one has another scheme or form.
    """
    first, *others = settings.addresses(host)
    if first.startswith('grpc') and not others:
        return open_channel(first)
    with _lock:
        key = (os.getpid(), host)
        if key not in _kept:
            _kept[key] = FirstReachable([first, *others]) if others else HttpChannel(first)
        return _kept[key]


class FirstReachable:
    """Several ways to one service. One that is open is kept as long as it is."""

    def __init__(self, addresses: Sequence[str]):
        self._addresses = tuple(addresses)

    def call(self, endpoint: str, parameters: Mapping[str, Any], docs: bytes = b'', timeout: float = TIMEOUT) -> bytes:
        tried = self._addresses
        for address in tried:
            try:
                return open_transport(address).call(endpoint, parameters, docs, timeout)
            except Unreachable:
                self._addresses = (*(other for other in self._addresses if other != address), address)
        raise nobody_at(*sorted(tried))

    def stream(self, endpoint: str, tags: Mapping[str, Any]) -> Iterator[Answer]:
        return open_transport(self._addresses[0]).stream(endpoint, tags)

    def close(self) -> None:
        for address in self._addresses:
            open_transport(address).close()
