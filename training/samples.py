"""Inputs to try an encoder with: features of real items, or of random ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from finetuner.inference.encoder import Encoder

Inputs = dict[str, np.ndarray]

_BATCH = 16
_LETTERS = np.array(list('aabcdeeefghiijklmnoopqrsttuvwxyz    '))


def as_batches(encoder: Encoder, features: Sequence[np.ndarray], size: int = _BATCH) -> list[Inputs]:
    """Batches of like length, each as `forward` takes it; the features are those of the encoder's preprocessor."""
    order = sorted(range(len(features)), key=lambda row: len(features[row]))
    return [
        encoder.preprocessor.collate([features[row] for row in order[start : start + size]])
        for start in range(0, len(order), size)
    ]


def random_batches(encoder: Encoder) -> Iterator[Inputs]:
    """The smallest and the largest inputs that the encoder takes, and batches of several sizes."""
    sizes = [(1, 1), (1, longest(encoder)), (3, 2), (5, min(23, longest(encoder)))]
    for batch, length in sizes if encoder.modality == 'text' else [(1, 0), (3, 0)]:
        yield encoder.preprocessor.collate(random_features(encoder, batch, length))


def random_features(encoder: Encoder, count: int, length: int = 8) -> list[np.ndarray]:
    """Features of random content.

    :param length: of texts, in tokens: of the longest one; each is one shorter than the one before.
    """
    random = np.random.default_rng(0)
    contents = [_content(encoder, random, length) for _ in range(count)]
    rows = encoder.preprocessor.features(contents)
    if encoder.modality != 'text' or _is_fixed(encoder):
        return rows
    return [_cut(row, max(1, length - number)) for number, row in enumerate(rows)]


def is_variable(encoder: Encoder) -> bool:
    """Whether batches have a length."""
    return encoder.modality == 'text' and not _is_fixed(encoder)


def _is_fixed(encoder: Encoder) -> bool:
    return bool(getattr(encoder.preprocessor, 'fixed_length', False))


def longest(encoder: Encoder) -> int:
    """The longest text in tokens; 1 for other content."""
    return int(getattr(encoder, 'max_length', 1))


def _cut(row: np.ndarray, length: int) -> np.ndarray:
    """The first tokens and the last one, which ends a text in many models."""
    return row if len(row) <= length else np.append(row[: length - 1], row[-1])


def _content(encoder: Encoder, random: np.random.Generator, length: int) -> Any:
    if encoder.modality == 'text':
        # a token has at least one letter
        return ' '.join(''.join(random.choice(_LETTERS, 8)) for _ in range(length + 1))
    if encoder.modality == 'mesh':
        return random.standard_normal((encoder.preprocessor.point_cloud_size, 3))  # type: ignore[attr-defined]
    if encoder.modality == 'tensor':
        return random.standard_normal(encoder.preprocessor.input_size).astype(np.float32)  # type: ignore[attr-defined]
    height, width = encoder.preprocessor.settings.size  # type: ignore[attr-defined]
    # smooth, as photos are
    coarse = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return np.repeat(np.repeat(coarse, 16, 0), 16, 1)[:height, :width]
