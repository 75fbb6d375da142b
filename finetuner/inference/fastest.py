"""The engine that is the faster one for a model on this machine: found by trying.

Which one that is depends on the model, on the machine and on the number of threads: torch computes texts without
padding, onnxruntime has less to do for each operator, and its model may have fewer bits. For a text model it may be
onnxruntime for few tokens, and torch for many.
"""

from __future__ import annotations

import logging
import math
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
_WORTH_TOGETHER = 1.1  # what torch must gain with several texts: onnxruntime answers each as soon as it has it
_FEW = (1, 2, 4, 8, 16)  # texts in the batches that are tried, to find which are small
_CHECKED = 4  # texts by which engines are found to compute the same again
_SAME = 1e-4  # of the length of an embedding: two engines that differ by more do not compute the same

_logger = logging.getLogger(__name__)

Choices = dict[int, float]
"""What was chosen in this process for models on one device with as many threads, by the bytes of their ONNX files: the
tokens of the largest batch that onnxruntime is given. It is infinite where onnxruntime is given all, 0 where torch is.
"""


def choose(load: Callable[[bool], InferenceEngine], may_keep_both: bool = True) -> tuple[InferenceEngine, float]:
    """Load a model with onnxruntime and with torch, and keep the one that embeds more samples per second.

    Where that is torch, but onnxruntime is faster with single texts and its embeddings are the same, both are kept:
    :class:`BySizeEngine`. The log says what was measured. Where torch lacks a library, and for other contents than
    texts and images, it is onnxruntime without a measurement.

    :param load: with onnxruntime, or not.
    :param may_keep_both: whether there is memory for the model twice.
    :return: the engine, and the choice as :data:`Choices` has it.
    """
    with_onnx = load(True)
    if with_onnx.modality not in _SAMPLES:
        return with_onnx, math.inf
    try:
        with_torch = load(False)
    except ModuleNotFoundError as error:
        _logger.info('chose %s: torch cannot load the model here: %s', type(with_onnx).__name__, error)
        return with_onnx, math.inf
    features = _features(with_onnx)
    of_onnx, of_torch = (len(features) / seconds for seconds in _measure([with_onnx, with_torch], features))
    chosen = with_torch if of_torch > _WORTH * of_onnx else with_onnx
    _logger.info(
        'chose %s: onnxruntime embeds %.0f samples per second here, torch %.0f',
        type(chosen).__name__,
        of_onnx,
        of_torch,
    )
    if chosen is with_onnx:
        return with_onnx, math.inf
    limit = 0
    if may_keep_both and chosen.modality == 'text' and _compute_the_same(with_onnx, with_torch, features):
        limit = _find_limit(with_onnx, with_torch, features)
    return (BySizeEngine(with_onnx, with_torch, limit) if limit else with_torch), limit


def choose_again(load: Callable[[bool], InferenceEngine], limit: float) -> InferenceEngine:
    """Load a model as one of the same shape was found to be faster, without measuring anew.

    :param load: with onnxruntime, or not.
    :param limit: that choice, as :func:`choose` returned it.
    """
    if limit in (0, math.inf):
        return load(limit == math.inf)
    with_onnx, with_torch = load(True), load(False)
    if _compute_the_same(with_onnx, with_torch, _features(with_onnx)[:_CHECKED]):
        return BySizeEngine(with_onnx, with_torch, int(limit))
    return with_torch


def _compute_the_same(one: InferenceEngine, other: InferenceEngine, features: Sequence[np.ndarray]) -> bool:
    found, expected = one.embed(features), other.embed(features)
    return bool((np.abs(found - expected).max(1) <= _SAME * np.linalg.norm(expected, axis=1)).all())


def _find_limit(with_onnx: InferenceEngine, with_torch: InferenceEngine, features: Sequence[np.ndarray]) -> int:
    """The tokens of the largest batch that is not left to torch; 0 if torch is given single texts, too."""
    by_length = sorted(features, key=len)
    limit = 0
    for count in _FEW:
        # of all lengths: such texts onnxruntime computes nearly one by one, and torch together
        batch = [by_length[(2 * number + 1) * len(by_length) // (2 * count)] for number in range(count)]
        of_onnx, of_torch = _measure([with_onnx, with_torch], batch)
        if (count == 1 and of_torch < _WORTH_BOTH * of_onnx) or _WORTH_TOGETHER * of_torch < of_onnx:
            break
        limit = sum(map(len, batch))
        if count == 1:
            _logger.info(
                'onnxruntime takes %.1f ms for one text, torch %.1f ms: both are kept', 1000 * of_onnx, 1000 * of_torch
            )
    if limit:
        _logger.info('onnxruntime is given batches of up to %d tokens, torch all others', limit)
    return limit


def _features(engine: InferenceEngine) -> list[np.ndarray]:
    samples = sample_contents(engine.modality, _SAMPLES[engine.modality])
    return engine.features(samples, 0, None, lambda position: f'sample {position}')


def _measure(engines: Sequence[InferenceEngine], features: Sequence[np.ndarray]) -> list[float]:
    """Seconds of each for all features."""

    def embed_all(engine: InferenceEngine) -> None:
        for _ in engine.embed_parts(features, engine.batch_size):
            pass

    return compare([partial(embed_all, engine) for engine in engines])[1]
