"""The engine that is the faster one for a model on this machine: found by trying.

Which one that is depends on the model, on the machine and on the number of threads: torch computes texts without
padding, onnxruntime has less to do for each operator, and its model may have fewer bits. For a text model it may be
onnxruntime for few tokens, and torch for many.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from finetuner.inference.by_size import BySizeEngine
from finetuner.inference.engine import InferenceEngine
from finetuner.inference.samples import sample_contents
from finetuner.inference.timing import compare

_SAMPLES = {'text': 32, 'image': 4}
_WORTH = 1.05  # what is to be gained at least for the memory that torch needs beyond onnxruntime
_WORTH_BOTH = 1.15  # what is to be gained for single texts for the memory of two models
_FEW = (1, 4, 16)  # texts in the batches that are tried, to find which are small
_SAME = 1e-4  # of the length of an embedding: two engines that differ by more do not compute the same

_logger = logging.getLogger(__name__)


def choose(load: Callable[[bool], InferenceEngine], may_keep_both: bool = True) -> InferenceEngine:
    """Load a model with onnxruntime and with torch, and keep the one that embeds more samples per second.

    Where that is torch, but onnxruntime is faster with single texts and its embeddings are the same, both are kept:
    :class:`BySizeEngine`. The log says what was measured. Where torch lacks a library, and for other contents than
    texts and images, it is onnxruntime without a measurement.

    :param load: with onnxruntime, or not.
    :param may_keep_both: whether there is memory for the model twice.
    """
    with_onnx = load(True)
    if with_onnx.modality not in _SAMPLES:
        return with_onnx
    try:
        with_torch = load(False)
    except ModuleNotFoundError as error:
        _logger.info('chose %s: torch cannot load the model here: %s', type(with_onnx).__name__, error)
        return with_onnx
    features = _features(with_onnx)
    of_onnx, of_torch = (len(features) / seconds for seconds in _measure([with_onnx, with_torch], features))
    chosen = with_torch if of_torch > _WORTH * of_onnx else with_onnx
    _logger.info(
        'chose %s: onnxruntime embeds %.0f samples per second here, torch %.0f',
        type(chosen).__name__,
        of_onnx,
        of_torch,
    )
    if chosen is with_torch and may_keep_both and chosen.modality == 'text':
        return _with_onnx_for_few(with_onnx, with_torch, features)
    return chosen


def _with_onnx_for_few(
    with_onnx: InferenceEngine, with_torch: InferenceEngine, features: Sequence[np.ndarray]
) -> InferenceEngine:
    """Both engines, if onnxruntime is faster with few texts and computes the same, or else torch."""
    found, expected = with_onnx.embed(features), with_torch.embed(features)
    if not (np.abs(found - expected).max(1) <= _SAME * np.linalg.norm(expected, axis=1)).all():
        return with_torch
    median = float(np.median([len(row) for row in features]))
    usual = sorted(features, key=lambda row: abs(len(row) - median))
    limit = 0
    for count in _FEW:
        batch = usual[:count]
        of_onnx, of_torch = _measure([with_onnx, with_torch], batch)
        if of_torch < of_onnx * (_WORTH_BOTH if count == 1 else 1):
            break
        limit = sum(map(len, batch))
        if count == 1:
            _logger.info(
                'onnxruntime takes %.1f ms for one text, torch %.1f ms: both are kept', 1000 * of_onnx, 1000 * of_torch
            )
    if not limit:
        return with_torch
    _logger.info('onnxruntime is given batches of up to %d tokens, torch all others', limit)
    return BySizeEngine(with_onnx, with_torch, limit)


def _features(engine: InferenceEngine) -> list[np.ndarray]:
    samples = sample_contents(engine.modality, _SAMPLES[engine.modality])
    return engine.features(samples, 0, None, lambda position: f'sample {position}')


def _measure(engines: Sequence[InferenceEngine], features: Sequence[np.ndarray]) -> list[float]:
    """Seconds of each for all features."""

    def embed_all(engine: InferenceEngine) -> None:
        for batch in engine.split(features, engine.batch_size):
            engine.embed([features[row] for row in batch])

    return compare([partial(embed_all, engine) for engine in engines])[1]
