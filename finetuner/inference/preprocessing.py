"""What turns content into what a model reads, without torch: the same code for training, torch and onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

Modality = Literal['text', 'image', 'mesh', 'tensor']
MODALITIES: tuple[Modality, ...] = ('text', 'image', 'mesh', 'tensor')


class Preprocessor(Protocol):
    """Content to features, one array per item, and features to the inputs of a model. Safe to call from many threads.

    ======== ========================================= ==========================================================
    modality content                                    features
    ======== ========================================= ==========================================================
    text     str                                        token ids, int32 [T]
    image    bytes or path of a file, uint8 [H, W, 3]   decoded, upright, resized and cropped, uint8 [H, W, 3]
    mesh     bytes or path of a file, float32 [P, 3]    a cloud of points, centred and scaled, float32 [P, 3]
    tensor   float32 [D]                                the same
    ======== ========================================= ==========================================================
    """

    @property
    def modality(self) -> Modality: ...

    @property
    def digest(self) -> str:
        """sha256 of all settings: two preprocessors of one digest make the same features of the same content."""
        ...

    def features(self, contents: Sequence[Any]) -> list[np.ndarray]:
        """One array per item, as the table says.

        :raises DataError: an item cannot be read; the message begins with `item <position>`.
        """
        ...

    def collate(self, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The inputs of one batch of features, by the names that the model gives them.

        text: `input_ids` and `attention_mask` (and `token_type_ids`), int64 [B, T], padded; image: `pixels`, uint8
        [B, H, W, 3]; mesh: `points`, float32 [B, P, 3]; tensor: `tensor`, float32 [B, D].
        """
        ...
