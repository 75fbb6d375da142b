"""Contents that a model is measured with when it is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetuner.inference.preprocessing import Modality

_WORDS = (
    'where',
    'is',
    'my',
    'order',
    'and',
    'how',
    'do',
    'i',
    'return',
    'the',
    'red',
    'shoes',
    'that',
    'came',
    'late',
)
_IMAGE = 256  # pixels of a side


def sample_contents(modality: Modality, count: int) -> list[Any]:
    """Texts of a few to two hundred words, mostly short ones, or images of noise; always the same. Of other contents
    nobody knows how large they are: there are none.
    """
    chooser = np.random.default_rng(0)
    if modality == 'text':
        lengths = chooser.lognormal(np.log(40), 0.8, count).clip(2, 200).astype(int)
        return [' '.join(chooser.choice(_WORDS, length)) for length in lengths]
    if modality == 'image':
        return list(chooser.integers(0, 256, (count, _IMAGE, _IMAGE, 3), np.uint8))
    return []
