"""From trained encoders to files that others can load: model directories, model.onnx in each, the artifact."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from finetuner.artifact import ModelInfo, pack
from finetuner.inference.backbones import load_encoder, save_encoders
from finetuner.inference.encoder import Encoder
from finetuner.inference.onnx_engine import MODEL_FILE, OUTPUT_NAME
from training.attention import keep_heads_together
from training.parity import Run, compare, onnx_run, torch_run
from training.quantisation import reduce
from training.samples import as_batches, is_variable, longest, random_batches, random_features

OPSET = 23
"""Of ONNX models: the first that has attention as one operator, which onnxruntime computes faster than its parts."""
TOLERANCE = 1e-4
"""The largest difference between a coordinate of torch's embedding and onnxruntime's, relative to its length."""

_SAME = 1e-4  # likewise, between an encoder and what is loaded again

Precision = Literal['fp32', 'fp16', 'int8']
Measure = Callable[[Mapping[str, Run]], Mapping[str, float]]
"""Finds retrieval metrics with given ways to compute embeddings, one for each encoder's name."""

_ONNX_LIMIT = 2**31 - (16 << 20)  # a protobuf message ends at 2 GiB, and the graph needs some of it
_NOISY = ('torch.onnx', 'onnxscript', 'onnx_ir', 'torch._dynamo', 'torch.export')
_TASKS = {'text': 'text-to-text', 'image': 'image-to-image', 'mesh': 'mesh-to-mesh', 'tensor': 'any'}
_MEASURED = 256  # samples that a reduced model is measured with, at most

logger = logging.getLogger(__name__)


def build_artifact(
    encoders: Mapping[str, Encoder],
    *,
    name: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    target: str | Path,
    onnx_precision: Precision = 'fp32',
    onnx_min_cosine: float = 0.99,
    samples: Mapping[str, Sequence[np.ndarray]] | None = None,
    measure: Measure | None = None,
) -> Path:
    """Export encoders and pack them.

    An ONNX model of fewer bits whose embeddings are too far from those of fp32 is refused: the artifact gets the one of
    fp32 then. An encoder that has no ONNX model, since none can be made or it computes something else, is packed
    without it. The log and `metadata.yml` say why.

    :param encoders: by the names of the artifact's models: 'model' alone, or 'clip-text' and 'clip-vision'.
    :param name: the run's name.
    :param config: the run's configuration, plain values.
    :param metrics: plain values; `{}` for none. What `measure` finds is compared with those in `after`.
    :param target: the zip to write.
    :param onnx_precision: of the ONNX models; the weights beside them are float32 in any case.
    :param onnx_min_cosine: the least that the mean cosine of embeddings to those of fp32 may be.
    :param samples: features of real items by encoder; without, random ones.
    :param measure: is asked about models of fewer bits.
    :return: `target`.
    :raises RuntimeError: what was saved does not compute what the encoder does, or the encoder gives no numbers.
    :raises ArtifactError: a name or value cannot be stored.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix='.artifact-') as directory:
        models = Path(directory) / 'models'
        reports = export_all(encoders, models, onnx_precision, onnx_min_cosine, samples)
        if measure and any(report.get('precision', 'fp32') != 'fp32' for report in reports.values()):
            with ExitStack() as stack:
                runs = {}
                for model, encoder in encoders.items():
                    stack.enter_context(_evaluating(encoder))
                    path = models / model / MODEL_FILE
                    runs[model] = onnx_run(path) if path.is_file() else torch_run(encoder)
                found = measure(runs)
            for report in reports.values():
                report['metrics'] = _with_losses(found, metrics.get('after', {}))
        infos = {
            model: ModelInfo(
                dim=encoder.dim,
                max_length=getattr(encoder, 'max_length', None),
                task=_TASKS[encoder.modality] if len(encoders) == 1 else 'text-to-image',
                preprocess_types=(encoder.modality,),
                export=reports[model],
            )
            for model, encoder in encoders.items()
        }
        return pack(directory, target, name=name, config=config, metrics=metrics, models=infos)


def check_size(encoder: Encoder) -> str | None:
    """Say in the log if an encoder is too large for an ONNX model.

    :return: why there will be none, or None.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
    if size <= _ONNX_LIMIT:
        return None
    reason = f'the model has {size / 1e9:.1f} GB of weights, and one ONNX file holds less than 2 GB'
    logger.warning('The artifact will have no ONNX model of the %s encoder: %s', encoder.modality, reason)
    return reason


def export(encoder: Encoder, directory: str | Path, precision: Precision = 'fp32', min_cosine: float = 0.99) -> Path:
    """Write the model directory of one encoder, with `model.onnx`.

    :return: `directory`.
    :raises RuntimeError: the ONNX model cannot be made, or its embeddings differ from the encoder's by more than
        :data:`TOLERANCE`.
    """
    directory = Path(directory)
    (report,) = export_all({directory.name: encoder}, directory.parent, precision, min_cosine).values()
    if 'reason' in report:
        raise RuntimeError(f'there is no ONNX model: {report["reason"]}')
    return directory


def export_all(
    encoders: Mapping[str, Encoder],
    directory: Path,
    precision: Precision = 'fp32',
    min_cosine: float = 0.99,
    samples: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write the model directories of encoders, `<directory>/<name>`, with `model.onnx` beside the weights.

    An ONNX model takes the inputs that its encoder does, batches of any size and texts of any length, and gives
    `sentence_embedding`, float32 [batch, dim], pooled and normalized as the encoder does.

    :return: how each ONNX model was made and measured, plain values, by name; `{'onnx': None, 'reason': ...}` of those
        that there are not.
    :raises RuntimeError: what was saved does not compute what the encoder does, or the encoder gives no numbers.
    """
    save_encoders(encoders, directory)
    reports = {}
    for name, encoder in encoders.items():
        with _evaluating(encoder):
            _check_saved(encoder, directory / name)
            own = (samples or {}).get(name, ())[:_MEASURED]
            reports[name] = _try_export(encoder, directory / name / MODEL_FILE, precision, min_cosine, own)
    return reports


def _check_saved(encoder: Encoder, directory: Path) -> None:
    try:
        saved = load_encoder(directory).eval()
    except Exception as error:  # each library has its own
        raise RuntimeError(f'the saved model {directory.name!r} cannot be loaded: {_plain(error)}') from error
    parity = compare(torch_run(encoder), torch_run(saved), list(random_batches(encoder)))
    if not parity.difference <= _SAME:
        raise RuntimeError(
            f'the saved model {directory.name!r} is wrong: an embedding differs by {parity.difference:.2e} of its '
            f'length from the one of the encoder, and {_SAME:.0e} is allowed'
        )


def _try_export(
    encoder: Encoder, path: Path, precision: Precision, min_cosine: float, samples: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Without an ONNX model, what hours of training gave can still be used with torch."""
    reason = check_size(encoder)
    if reason is None:
        try:
            return _export(encoder, path, precision, min_cosine, samples)
        except Exception as error:  # the exporter's have no common base
            reason = _plain(error).replace(f'{path.parent}/', '')
            logger.warning('The artifact has no ONNX model of %r: %s', path.parent.name, reason)
            logger.debug('the export of %r', path.parent.name, exc_info=True)
            for left in path.parent.glob(f'{path.name}*'):
                left.unlink()
    return {'onnx': None, 'reason': reason}


def _plain(error: Exception) -> str:
    return ' '.join(str(error).split())[:300] or type(error).__name__


def _export(
    encoder: Encoder, path: Path, precision: Precision, min_cosine: float, samples: Sequence[np.ndarray]
) -> dict[str, Any]:
    _export_onnx(encoder, path)
    batches = as_batches(encoder, samples)
    parity = compare(torch_run(encoder), onnx_run(path), [*random_batches(encoder), *batches[:2]])
    if not parity.difference <= TOLERANCE:
        raise RuntimeError(
            f'the exported ONNX model is wrong: an embedding differs by {parity.difference:.2e} of its length from the '
            f'one of torch, and {TOLERANCE:.0e} is allowed'
        )
    report: dict[str, Any] = {'precision': 'fp32', 'to_torch': parity.plain()}
    if precision == 'fp32':
        return report
    report['measured_on'] = f'{len(samples)} samples' if samples else 'random inputs'
    batches = batches or as_batches(encoder, random_features(encoder, _MEASURED, length=32))
    method, report['to_fp32'] = reduce(path, precision, batches, min_cosine)
    if method is None:
        report['refused'] = f'no {precision} model has a mean cosine to fp32 of {min_cosine} or more (onnx_min_cosine)'
        logger.warning('The ONNX model stays in fp32: %s; measured: %s', report['refused'], report['to_fp32'])
        return report
    cosine = report['to_fp32'][method]['mean_cosine']
    logger.info('The ONNX model is in %s (%s): its mean cosine to fp32 is %.4f', precision, method, cosine)
    return report | {'precision': precision, 'method': method}


def _export_onnx(encoder: Encoder, path: Path) -> None:
    names = encoder.input_names
    inputs = encoder.preprocessor.collate(random_features(encoder, 2))
    shape: dict[int, Any] = {0: torch.export.Dim('batch')}
    if is_variable(encoder):
        shape[1] = torch.export.Dim('length', max=longest(encoder))
    with _quiet():
        program = torch.onnx.export(
            _ByPosition(encoder),
            tuple(torch.from_numpy(inputs[name]) for name in names),
            input_names=names,
            output_names=[OUTPUT_NAME],
            dynamic_shapes=(tuple(dict(shape) for _ in names),),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        # the exporter notes where in which source file every node comes from: hundreds of kB about this machine
        ClearMetadataAndDocStringPass()(program.model)
        keep_heads_together(program.model)
        onnx_ir.save(program.model, path)


class _ByPosition(nn.Module):
    """The exporter cannot give dynamic shapes to arguments by name of a forward that takes any."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.encoder(**dict(zip(self.encoder.input_names, inputs, strict=True)))


def _with_losses(found: Mapping[str, float], after: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Each metric with what it is less than with the weights of fp32, where that is known."""
    return {
        name: {'value': float(value)} | ({'loss': float(after[name] - value)} if name in after else {})
        for name, value in found.items()
    }


@contextmanager
def _evaluating(encoder: Encoder) -> Iterator[None]:
    """The encoder on the CPU, without dropout and gradients; afterwards as it was."""
    training, device = encoder.training, next(encoder.parameters()).device
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval().cpu()
    try:
        with torch.no_grad():
            yield
    finally:
        encoder.train(training).to(device)
        for module, mode in modes.items():
            module.training = mode


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
