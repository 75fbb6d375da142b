"""What a model makes of sessions, whether it is served, or in the middle of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from finetuner.inference import InferenceEngine, load_engine
from finetuner.inference.encoder import Encoder
from finetuner.inference.torch_engine import TorchInferenceEngine
from training.clicks.comparing import Embedded, embed_sessions
from training.clicks.examples import Items, Judged

TEXTS, IMAGES = 'clip-text', 'clip-vision'
BATCH = 64


def embed_by_model(model: str | Path, modality: str, judged: Judged, items: Items, device: str | None) -> Embedded:
    """
    :param model: the file of an artifact, a model directory, or a name.
    :param modality: of the items: 'text' or 'image'.
    :param device: 'cpu' or 'cuda'; None is 'cuda' where there is one.
    """
    queries = _load(model, TEXTS, device)
    found = queries if modality == 'text' else _load(model, IMAGES, device)
    return _embed(queries, found, judged, items)


def embed_by_encoders(encoders: Mapping[str, Encoder], modality: str, judged: Judged, items: Items) -> Embedded:
    """
    :param encoders: as a training has them: 'model' alone, or 'clip-text' and 'clip-vision'.
    """
    text = encoders.get('model') or encoders[TEXTS]
    other = text if modality == 'text' else encoders[IMAGES]
    with _evaluating(text), _evaluating(other):
        engines = {encoder: _engine(encoder) for encoder in (text, other)}
        return _embed(engines[text], engines[other], judged, items)


def _load(model: str | Path, select: str, device: str | None) -> InferenceEngine:
    return load_engine(model, select_model=select, device=device, batch_size=BATCH)


def _embed(queries: InferenceEngine, contents: InferenceEngine, judged: Judged, items: Items) -> Embedded:
    def embed(values: Sequence[str | Path]) -> np.ndarray:
        return contents.encode_contents([str(value) for value in values])

    return embed_sessions(judged, items, lambda texts: queries.encode_texts([str(text) for text in texts]), embed)


def _engine(encoder: Encoder) -> InferenceEngine:
    device = next(encoder.parameters()).device
    return TorchInferenceEngine(encoder, batch_size=BATCH, device=device.type, device_id=device.index or 0)


@contextmanager
def _evaluating(encoder: Encoder) -> Iterator[None]:
    was_training = encoder.training
    try:
        yield
    finally:
        encoder.train(was_training)
