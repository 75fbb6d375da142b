"""Embeddings by what they are of: exact, bounded in bytes, and computed once however many ask for the same at once.

A key is the sha256 of the model's digest and the content, so that no model is answered with what another has computed.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetuner.data.contents import is_data_uri
from finetuner.inference.preprocessing import Modality

KEEPING = 320
"""Bytes that an entry takes beside its embedding, for its key, objects and place; 283 were measured."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What was computed of one item.

    :param embedding: the bytes of a float32 [D].
    :param tokens: of a text, special ones included; 0 of other contents.
    """

    embedding: bytes
    tokens: int

    @property
    def size(self) -> int:
        return len(self.embedding) + KEEPING


@dataclass(eq=False, slots=True)
class Flight:
    """What one request computes, and what others that ask for the same wait for.

    :param keys: of what is computed.
    :param found: what came of it. It lacks what could not be computed.
    :param was_left: its request was given up or ran out of time, which tells nothing of the items that are lacking.
    :param landed: is done when no more will come, whether it went well or not.
    """

    keys: list[bytes] = field(default_factory=list)
    found: Mapping[bytes, Entry] = field(default_factory=dict)
    was_left: bool = False
    landed: Future[None] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class Share:
    """An item that somebody else computes."""

    key: bytes
    flight: Flight

    @property
    def entry(self) -> Entry | None:
        """What came of it; None as long as it is on its way, and if it could not be computed."""
        return self.flight.found.get(self.key)


@dataclass(frozen=True, slots=True)
class Claim:
    """How each item of a part of a request is come by, by position.

    :param hits: are there.
    :param shared: are being computed, for another request or for an item of this one that came before.
    :param missed: are to be computed now; then `flight` is landed.
    """

    hits: dict[int, Entry]
    shared: dict[int, Share]
    missed: list[int]
    flight: Flight


class EmbeddingCache:
    """Keeps what was asked for last. Its methods may be called from several threads.

    :param max_bytes: of embeddings, and of what keeping them takes.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._flights: dict[bytes, Flight] = {}
        self._lock = threading.Lock()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes that it takes now."""
        return self._size

    def claim(self, positions: Iterable[int], keys: Sequence[bytes | None]) -> Claim:
        """Look items up, and take it on oneself to compute those that nobody has or computes.

        :param positions: of a part of a request.
        :param keys: of the whole request; None is of what is never kept.
        """
        claim = Claim({}, {}, [], Flight())
        with self._lock:
            for position in positions:
                key = keys[position]
                if key is None:
                    claim.missed.append(position)
                elif (entry := self._entries.get(key)) is not None:
                    self._entries.move_to_end(key)
                    claim.hits[position] = entry
                elif (flight := self._flights.get(key)) is not None:
                    claim.shared[position] = Share(key, flight)
                else:
                    self._flights[key] = claim.flight
                    claim.flight.keys.append(key)
                    claim.missed.append(position)
        return claim

    def land(self, flight: Flight, found: Mapping[bytes, Entry], was_left: bool = False) -> None:
        """End a flight: keep what was found, and let go on who waits for it."""
        with self._lock:
            for key in flight.keys:
                del self._flights[key]
            self._keep(found)
        flight.found, flight.was_left = found, was_left
        flight.landed.set_result(None)

    def _keep(self, found: Mapping[bytes, Entry]) -> None:
        for key, entry in found.items():
            if (before := self._entries.pop(key, None)) is not None:
                self._size -= before.size
            self._entries[key] = entry
            self._size += entry.size
        while self._size > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._size -= oldest.size


@dataclass(frozen=True)
class ModelCache:
    """A cache as one of the models uses it that share it.

    :param model: the digest of all that an embedding depends on beside the content, see `digest_model`.
    """

    entries: EmbeddingCache
    model: str

    def keys(self, contents: Sequence[Any], modality: Modality) -> list[bytes | None]:
        """The keys of contents, sha256. None is of a path or an address, whose content may be another next time."""
        model = hashlib.sha256(self.model.encode())

        def key(content: Any) -> bytes | None:
            parts = _parts(content, modality)
            if parts is None:
                return None
            whole = model.copy()
            for part in parts:
                whole.update(part)
            return whole.digest()

        return [key(content) for content in contents]


def _parts(content: Any, modality: Modality) -> tuple[bytes, bytes] | None:
    """Kind and bytes of a content, which no other content has; None if they are not known before it is read."""
    if isinstance(content, str):
        if modality != 'text' and not is_data_uri(content):
            return None
        return b'text:', content.encode(errors='surrogatepass')
    if isinstance(content, bytes):
        return b'blob:', content
    if isinstance(content, np.ndarray) and not content.dtype.hasobject:
        return f'array:{content.dtype.str}{content.shape}:'.encode(), content.tobytes()
    return None
