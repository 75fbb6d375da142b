"""The cache of an encoder, as its operator wants it."""

from __future__ import annotations

import os

from finetuner.excepts import ParameterError
from finetuner.inference.cache import EmbeddingCache

VARIABLE = 'FINETUNER_ENCODE_CACHE_BYTES'


def make_cache(max_bytes: int | None) -> EmbeddingCache | None:
    """A cache of so many bytes, default `FINETUNER_ENCODE_CACHE_BYTES`; None where that is 0, or not set.

    :raises ParameterError: it is no whole number, or a negative one.
    """
    name, given = ('cache_bytes', max_bytes) if max_bytes is not None else (VARIABLE, os.environ.get(VARIABLE) or 0)
    if not str(given).isdecimal():
        raise ParameterError(f'{name} is {given!r}: it is a number of bytes, and 0 for no cache')
    return EmbeddingCache(int(given)) if int(given) else None
