"""In how many bits a model computes."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch

Precision = Literal['fp32', 'bf16', 'fp16']

DTYPES: dict[str, torch.dtype] = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def check_precision(precision: str) -> Precision:
    """:raises ValueError: there is no such precision."""
    for known in get_args(Precision):
        if precision == known:
            return known
    raise ValueError(f'precision is {precision!r}: choose {", ".join(get_args(Precision))}')


def mean_cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Of two arrays of vectors, [N, D], row by row."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.mean((left * right).sum(1) / np.maximum(norms, 1e-12)))
