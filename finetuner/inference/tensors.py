"""Vectors that a user brings, checked and stacked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from finetuner.excepts import DataError
from finetuner.inference.preprocessing import Modality


class TensorPreprocessor:
    """:param input_size: how many numbers a vector has."""

    modality: ClassVar[Modality] = 'tensor'

    def __init__(self, input_size: int):
        self.input_size = input_size

    @property
    def digest(self) -> str:
        return hashlib.sha256(f'tensor {self.input_size}'.encode()).hexdigest()

    def features(self, contents: Sequence[Any]) -> list[np.ndarray]:
        """The vectors as float32 [input_size].

        :raises DataError: one is not a vector of finite numbers of this length; the message names its position.
        """
        return [self._check(position, content) for position, content in enumerate(contents)]

    def collate(self, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """`tensor`, float32 [B, input_size]."""
        return {'tensor': np.stack(rows).astype(np.float32, copy=False)}

    def _check(self, position: int, content: Any) -> np.ndarray:
        try:
            given = np.asarray(content)
            if given.dtype.kind not in 'fiub':
                raise ValueError
            with np.errstate(over='ignore'):  # what float32 cannot hold becomes infinite, and is refused below
                vector = given.astype(np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f'item {position} is not a vector of numbers but {type(content).__name__}') from error
        if vector.shape != (self.input_size,):
            shape = ' × '.join(map(str, vector.shape)) or 'one number'
            raise DataError(f'item {position} has the shape {shape}: this model takes vectors of {self.input_size}')
        if not np.isfinite(vector).all():
            raise DataError(f'item {position} has a value that is not finite')
        return vector
