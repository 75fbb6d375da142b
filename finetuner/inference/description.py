"""`encoder.json`, which says what a model directory holds where its library's own files do not. Read without torch.

========= ==========================================================================================================
library   what opens the backbone: `torchvision`, `timm`, `open_clip`, `transformers-clip`, `pointnet` or `mlp`
modality  `text`, `image`, `mesh` or `tensor`
dim       the length of an embedding
normalize whether embeddings are scaled to L2 norm 1
head      one entry for each dense layer after pooling, whose weights are in `head.safetensors`
========= ==========================================================================================================

Image models add `architecture`, `pooling`, `pooling_options` and `preprocess`; the others what their encoders need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetuner.inference.layout import read_json, write_json
from finetuner.inference.preprocessing import Modality

DESCRIPTION = 'encoder.json'


def has_description(directory: Path) -> bool:
    return (directory / DESCRIPTION).is_file()


def read_description(directory: Path) -> dict[str, Any]:
    """The content of `encoder.json`.

    :raises ValueError: it is not there, or not an object with a library and a modality.
    """
    path = directory / DESCRIPTION
    if not path.is_file():
        raise ValueError(f'{directory} has no {DESCRIPTION}')
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), str) for key in ('library', 'modality')):
        raise ValueError(f'{path} names no library or no modality')
    return content


def write_description(
    directory: Path, *, library: str, modality: Modality, dim: int, normalize: bool, **details: Any
) -> None:
    """Write `encoder.json`.

    :param details: what else the library's encoder needs; plain values.
    """
    content = {'library': library, 'modality': modality, 'dim': dim, 'normalize': normalize, **details}
    write_json(directory / DESCRIPTION, content)
