"""The engine that is the faster one for a model on this machine: found by trying.

Which one that is depends on the model, on the machine and on the number of threads: torch computes texts without
padding, onnxruntime has less to do for each operator, and its model may have fewer bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from finetuner.inference.engine import InferenceEngine
from finetuner.inference.samples import sample_contents

_SAMPLES = {'text': 64, 'image': 8}
_ROUNDS = 3
_WORTH = 1.05  # what is to be gained at least for the memory that torch needs beyond onnxruntime

_logger = logging.getLogger(__name__)


def choose(load: Callable[[bool], InferenceEngine]) -> InferenceEngine:
    """Load a model with onnxruntime and with torch, and keep the one that embeds more samples per second.

    The log says what was measured. Where torch lacks a library, and for other contents than texts and images, it is
    onnxruntime without a measurement.

    :param load: with onnxruntime, or not.
    """
    with_onnx = load(True)
    if with_onnx.modality not in _SAMPLES:
        return with_onnx
    try:
        with_torch = load(False)
    except ModuleNotFoundError as error:
        _logger.info('chose %s: torch cannot load the model here: %s', type(with_onnx).__name__, error)
        return with_onnx
    of_onnx, of_torch = _measure([with_onnx, with_torch])
    chosen = with_torch if of_torch > _WORTH * of_onnx else with_onnx
    _logger.info(
        'chose %s: onnxruntime embeds %.0f samples per second here, torch %.0f',
        type(chosen).__name__,
        of_onnx,
        of_torch,
    )
    return chosen


def _measure(engines: Sequence[InferenceEngine]) -> list[float]:
    """Samples per second of each, in the best of some rounds that they do in turns."""
    modality = engines[0].modality
    samples = sample_contents(modality, _SAMPLES[modality])
    features = engines[0].features(samples, 0, None, lambda position: f'sample {position}')
    seconds = [[_time(engine, features) for engine in engines] for _ in range(1 + _ROUNDS)]
    return [len(samples) / min(taken) for taken in zip(*seconds[1:], strict=True)]  # the first round warms up


def _time(engine: InferenceEngine, features: Sequence[np.ndarray]) -> float:
    began = time.perf_counter()
    for batch in engine.split(features, engine.batch_size):
        engine.embed([features[row] for row in batch])
    return time.perf_counter() - began
