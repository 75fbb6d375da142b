"""From a trained encoder to files that others can load: a sentence-transformers directory, model.onnx, the artifact."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from finetuner.artifact import ModelInfo, pack
from finetuner.inference.onnx_engine import MODEL_FILE, OUTPUT_NAME
from finetuner.inference.text_encoder import TextEncoder

TOLERANCE = 1e-4
"""The largest difference between a coordinate of torch's embedding and onnxruntime's that an export may have."""

_MODEL = 'model'  # the name of an artifact's only model
_ONNX_LIMIT = 2**31 - (16 << 20)  # a protobuf message ends at 2 GiB, and the graph needs some of it
_NOISY = ('torch.onnx', 'onnxscript', 'onnx_ir', 'torch._dynamo', 'torch.export')


def build_artifact(
    encoder: TextEncoder, *, name: str, config: Mapping[str, Any], metrics: Mapping[str, Any], target: str | Path
) -> Path:
    """Export an encoder and pack it.

    :param name: the run's name.
    :param config: the run's configuration, plain values.
    :param metrics: plain values; `{}` for none.
    :param target: the zip to write.
    :return: `target`.
    :raises RuntimeError: the ONNX model does not compute what the encoder does.
    :raises ArtifactError: a name or value cannot be stored.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix='.artifact-') as directory:
        export(encoder, Path(directory) / 'models' / _MODEL)
        models = {_MODEL: ModelInfo(dim=encoder.dim, max_length=encoder.max_length)}
        return pack(directory, target, name=name, config=config, metrics=metrics, models=models)


def check_size(encoder: TextEncoder) -> None:
    """:raises ValueError: the encoder is too large to be exported."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
    if size > _ONNX_LIMIT:
        raise ValueError(f'the model has {size / 1e9:.1f} GB of weights: one ONNX file holds less than 2 GB')


def export(encoder: TextEncoder, directory: str | Path) -> Path:
    """Write an encoder as a sentence-transformers directory with `model.onnx` beside the weights.

    The ONNX model takes `input_ids`, `attention_mask` and, where the tokenizer makes them, `token_type_ids`, int64
    [batch, length], and gives `sentence_embedding`, float32 [batch, dim], pooled and normalized as the encoder does.

    :return: `directory`.
    :raises ValueError: the ONNX model would exceed 2 GB.
    :raises RuntimeError: its embeddings differ from the encoder's by more than :data:`TOLERANCE`.
    """
    check_size(encoder)
    directory = encoder.save(directory)
    with _evaluating(encoder):
        _export_onnx(encoder, directory / MODEL_FILE)
        difference = _measure_difference(encoder, directory / MODEL_FILE)
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f'the exported ONNX model is wrong: an embedding differs by {difference:.2e} from the one of torch, and '
            f'{TOLERANCE:.0e} is allowed'
        )
    return directory


def _export_onnx(encoder: TextEncoder, path: Path) -> None:
    names = encoder.input_names
    inputs = _random_inputs(encoder, batch=2, length=min(8, encoder.max_length))
    shape = {0: torch.export.Dim('batch'), 1: torch.export.Dim('length', max=encoder.max_length)}
    with _quiet():
        program = torch.onnx.export(
            encoder,
            kwargs={name: torch.from_numpy(inputs[name]) for name in names},
            input_names=names,
            output_names=[OUTPUT_NAME],
            dynamic_shapes=dict.fromkeys(names, shape),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        # the exporter notes where in which source file every node comes from: hundreds of kB about this machine
        ClearMetadataAndDocStringPass()(program.model)
        onnx_ir.save(program.model, path)


def _measure_difference(encoder: TextEncoder, path: Path) -> float:
    """The largest absolute difference over the smallest and largest inputs, with and without padding."""
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    differences = []
    for batch, length in ((1, 1), (1, encoder.max_length), (3, 2), (5, min(23, encoder.max_length))):
        inputs = _random_inputs(encoder, batch, length)
        expected = encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
        (found,) = session.run([OUTPUT_NAME], inputs)
        differences.append(float(np.abs(found - expected).max()))
    return float(np.max(differences))


def _random_inputs(encoder: TextEncoder, batch: int, length: int) -> dict[str, np.ndarray]:
    """Token ids, int64 [batch, length], each row with one more token of padding than the one before."""
    random = np.random.default_rng(0)
    ids = random.integers(0, len(encoder.tokenizer), (batch, length))
    lengths = np.maximum(length - np.arange(batch), 1)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask == 1, ids, encoder.tokenizer.pad_token_id or 0)
    inputs = {'input_ids': ids, 'attention_mask': mask, 'token_type_ids': np.zeros_like(ids)}
    return {name: inputs[name] for name in encoder.input_names}


@contextmanager
def _evaluating(encoder: TextEncoder) -> Iterator[None]:
    """The encoder on the CPU, without dropout and gradients; afterwards as it was."""
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval().cpu()
    try:
        with torch.no_grad():
            yield
    finally:
        encoder.train(training).to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about its own insides out of the run's log."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
