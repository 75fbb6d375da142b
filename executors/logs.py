"""Reading a log while a worker writes it."""

from __future__ import annotations

import codecs

from registry import Registry

LIMIT = 1 << 20


def read_log(registry: Registry, run_id: str, offset: int) -> tuple[str, int]:
    """At most 1 MiB of text from byte `offset` on, and the offset of what follows. Empty if there is no more.

    A character of which not all bytes are there yet is left for the next read.
    """
    data, text = read_piece(registry, run_id, offset)
    return text, offset + len(data)


def read_piece(registry: Registry, run_id: str, offset: int) -> tuple[bytes, str]:
    """The same as the bytes that are there, and as text."""
    data = registry.read_log(run_id, offset, LIMIT)
    decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
    text = decoder.decode(data)
    pending, _ = decoder.getstate()
    return data[: len(data) - len(pending)], text
