"""Reading a log while another process writes it."""

from __future__ import annotations

import codecs
from pathlib import Path

LIMIT = 1 << 20


def read_log(path: Path, offset: int) -> tuple[str, int]:
    """At most 1 MiB of text from byte `offset` on, and the offset of what follows. Empty if there is no more.

    A character of which not all bytes are there yet is left for the next read.
    """
    try:
        with path.open('rb') as file:
            file.seek(offset)
            data = file.read(LIMIT)
    except FileNotFoundError:
        return '', offset
    decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
    text = decoder.decode(data)
    pending, _ = decoder.getstate()
    return text, offset + len(data) - len(pending)
