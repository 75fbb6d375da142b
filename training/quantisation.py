"""ONNX models in fewer bits: smaller files, faster where the machine has the instructions, and not quite the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16

from training.parity import compare, onnx_run
from training.samples import Inputs

Precision = Literal['fp16', 'int8']
Method = Callable[[Path, Path, Sequence[Inputs]], None]

_BLOCK = 32  # weights that share a scale
# what turns numbers into positions: in half the bits, other positions would come out
_CHOICES = ('TopK', 'ArgMax', 'ArgMin', 'NonZero')


def methods(precision: Precision, path: Path) -> dict[str, Method]:
    """The ways to reduce a model, by name, the fastest model first.

    :param path: the model.onnx of fp32.
    """
    if precision == 'fp16':
        return {'float16': to_float16}
    if precision == 'int8' and _is_convolutional(path):
        return {'static': to_int8_static}
    return {'dynamic': to_int8_dynamic, 'blockwise': to_int8_blockwise}


def reduce(
    path: Path, precision: Precision, batches: Sequence[Inputs], min_cosine: float
) -> tuple[str | None, dict[str, Any]]:
    """Replace a model.onnx by one of fewer bits, the first of :func:`methods` that comes near enough.

    :param batches: to calibrate and to measure with.
    :param min_cosine: the least that the mean cosine of embeddings to those of fp32 may be.
    :return: the method, None where none would do and the model stays as it was; and of each that was tried, what was
        measured, or why it failed.
    """
    exact = onnx_run(path)
    tried: dict[str, dict[str, Any]] = {}
    for name, method in methods(precision, path).items():
        aside = path.with_name(f'{name}.onnx')
        try:
            method(path, aside, batches)
            parity = compare(exact, onnx_run(aside), batches)
            tried[name] = parity.plain()
            if parity.mean_cosine >= min_cosine:
                aside.replace(path)
                return name, tried
        except Exception as error:  # those of the tools have no common base, and the model of fp32 is there
            tried[name] = {'error': f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'}
        finally:
            aside.unlink(missing_ok=True)
    return None, tried


def to_float16(source: Path, target: Path, samples: Sequence[Inputs]) -> None:
    """Weights and arithmetic in 16 bits; inputs and outputs stay as they are."""
    model = onnx.load(source)
    exact = list(_leading_to(model, _CHOICES))
    with _quiet():
        model = convert_float_to_float16(model, keep_io_types=True, node_block_list=exact)
    # the tool adds some casts several times
    nodes = list({tuple(node.output): node for node in model.graph.node}.values())
    del model.graph.node[:]
    for number, node in enumerate(nodes):
        node.name = f'{node.op_type}_{number}'
        model.graph.node.append(node)
    onnx.save(model, target)


def to_int8_dynamic(source: Path, target: Path, samples: Sequence[Inputs]) -> None:
    """Weights of 8 bits with one scale per channel; activations are rounded when they come, a whole batch by one scale.

    One bit of the weights is not used: without it, sums overflow on processors that have no VNNI.
    """
    with _quiet():
        quantize_dynamic(
            _without_shapes(source),
            target,
            op_types_to_quantize=['MatMul', 'Gemm', 'Gather'],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )


def to_int8_blockwise(source: Path, target: Path, samples: Sequence[Inputs]) -> None:
    """Weights of 8 bits with one scale for every 32, activations likewise: nearly exact, and not as fast."""
    config = DefaultWeightOnlyQuantConfig(block_size=_BLOCK, is_symmetric=True, accuracy_level=4, bits=8)
    with _quiet():
        # tables of embeddings
        quantize_dynamic(_without_shapes(source), target, op_types_to_quantize=['Gather'], weight_type=QuantType.QInt8)
        quantizer = MatMulNBitsQuantizer(onnx.load(target), algo_config=config)
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), False)


def to_int8_static(source: Path, target: Path, samples: Sequence[Inputs]) -> None:
    """Weights of 8 bits with one scale per channel; the scales of activations are those of samples."""
    with _quiet():
        quantize_static(
            _without_shapes(source),
            target,
            _Samples(samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def _without_shapes(path: Path) -> onnx.ModelProto:
    """A model that does not note the shapes of weights, as the tools turn some around."""
    model = onnx.load(path)
    del model.graph.value_info[:]
    return model


class _Samples(CalibrationDataReader):
    def __init__(self, batches: Sequence[Inputs]):
        self._batches = iter(batches)

    def get_next(self) -> Inputs | None:
        return next(self._batches, None)


def _is_convolutional(path: Path) -> bool:
    """Whether most of the weights are those of convolutions."""
    model = onnx.load(path)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    weights = sum(sizes.get(name, 0) for node in model.graph.node if node.op_type == 'Conv' for name in node.input)
    return weights > sum(sizes.values()) / 2


def _leading_to(model: onnx.ModelProto, kinds: Sequence[str]) -> Iterator[str]:
    """The names of nodes of some kinds, and of all that come before them."""
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting = [node for node in model.graph.node if node.op_type in kinds]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node.name not in seen:
            seen.add(node.name)
            yield node.name
            waiting += [makers[name] for name in node.input if name in makers]


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's tools log every node, some of it by the root logger, to which they would add a handler."""
    root, before, handler = logging.getLogger(), logging.root.manager.disable, logging.NullHandler()
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)
