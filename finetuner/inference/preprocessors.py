"""The preprocessor of a model directory, found without torch."""

from __future__ import annotations

from pathlib import Path

from finetuner.inference.description import has_description, read_description
from finetuner.inference.layout import read_layout
from finetuner.inference.preprocessing import Preprocessor


def load_preprocessor(directory: Path) -> Preprocessor:
    """:param directory: what an encoder wrote: with `encoder.json`, or laid out as by sentence-transformers.

    :raises ValueError: it holds no model, or its settings are not valid.
    """
    if not has_description(directory):
        from finetuner.inference.tokenization import TextTokenizer

        return TextTokenizer.load(read_layout(directory))
    description = read_description(directory)
    modality, settings = description['modality'], description.get('preprocess') or {}
    if modality == 'image':
        from finetuner.inference.images import ImagePreprocessor, ImageSettings

        return ImagePreprocessor(ImageSettings.from_dict(settings))
    if modality == 'text':
        from finetuner.inference.clip_tokens import ClipTextPreprocessor

        return ClipTextPreprocessor.load(directory)
    if modality == 'mesh':
        from finetuner.inference.meshes import MeshPreprocessor

        return MeshPreprocessor(**settings)
    if modality == 'tensor':
        from finetuner.inference.tensors import TensorPreprocessor

        return TensorPreprocessor(**settings)
    raise ValueError(f'{directory} is of the modality {modality!r}, which is not known here')
