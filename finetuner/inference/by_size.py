"""Two engines of one text model: onnxruntime for few tokens, torch for many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from finetuner.inference.engine import InferenceEngine, Part


class BySizeEngine(InferenceEngine):
    """Gives a batch to one of two engines of the same model, by the tokens that it has.

    A single text takes onnxruntime less, which has less to do around each operator; of many texts torch can compute
    all tokens as one stream, without padding.

    :param small: for batches of few tokens.
    :param large: for all others.
    :param limit: the tokens of the largest batch that `small` is given.
    """

    def __init__(self, small: InferenceEngine, large: InferenceEngine, limit: int):
        super().__init__(large.preprocessor, large.dim, large.batch_size)
        self.small, self.large, self.limit = small, large, limit

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self.large.run(inputs)

    def embed(self, features: Sequence[np.ndarray]) -> np.ndarray:
        return self._of(features).embed(features)

    def computed(self, features: Sequence[np.ndarray]) -> int:
        return self._of(features).computed(features)

    def split(self, features: Sequence[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
        return self._of(features).split(features, batch_size)

    def embed_parts(self, features: Sequence[np.ndarray], batch_size: int) -> Iterator[Part]:
        return self._of(features).embed_parts(features, batch_size)

    def _of(self, features: Sequence[np.ndarray]) -> InferenceEngine:
        return self.small if sum(map(len, features)) <= self.limit else self.large
