"""Embeddings by the service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetuner.client.encode_client import EncodeClient

if TYPE_CHECKING:
    import numpy as np


def encode_remotely(texts: Sequence[str]) -> np.ndarray:
    """Have the service encode texts with the artifact that it serves. No token is needed where it demands none.

    :return: [texts, dimensions], float32.
    :raises FinetunerServerError: the service serves no artifact, or cannot be reached for half a minute.
    """
    with EncodeClient() as client:
        return client.encode(texts)
