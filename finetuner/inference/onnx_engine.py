"""Inference with onnxruntime, and tokenizers or Pillow: needs neither torch nor transformers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from finetuner.inference.engine import InferenceEngine
from finetuner.inference.pool import Pool
from finetuner.inference.preprocessing import Modality
from finetuner.inference.preprocessors import load_preprocessor

MODEL_FILE = 'model.onnx'
OUTPUT_NAME = 'sentence_embedding'

_AT_ONCE = 8  # small batches that share the threads, at most
_PART_TOKENS = 256  # of such a batch
_MAX_TWICE = 128 << 20  # bytes of the largest model whose weights are kept twice, so that batches need share no threads
_SPIN = '20'  # microseconds that a thread stays awake when it has nothing to do
_SLOWER = {'SkipLayerNormFusion'}  # fusions that are slower on a CPU than the operators in their place

_INPUTS: dict[Modality, set[str]] = {
    'text': {'input_ids', 'attention_mask', 'token_type_ids'},
    'image': {'pixels'},
    'mesh': {'points'},
    'tensor': {'tensor'},
}


class ONNXRuntimeInferenceEngine(InferenceEngine):
    """Runs `model.onnx` of a model directory.

    :param directory: with `model.onnx`, which pools and normalizes itself, and what tells how to prepare its inputs.
    :param batch_size: how many items the model is given at once.
    :param device: `cpu` or `cuda`. Without a CUDA build of onnxruntime, `cuda` warns and runs on the CPU.
    :param device_id: which of several GPUs.
    :param omp_num_threads: as `intra_op_num_threads`, where that is 0: onnxruntime has no OpenMP of its own.
    :param intra_op_num_threads: threads that compute one operator; 0 lets onnxruntime choose.
    :param inter_op_num_threads: operators that run at the same time; 0 and 1 are one after the other.
    :raises ValueError: the directory has no model that can be run.
    :raises RuntimeError: the GPU cannot be used.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        batch_size: int = 32,
        device: str = 'cpu',
        device_id: int = 0,
        omp_num_threads: int | None = None,
        intra_op_num_threads: int = 0,
        inter_op_num_threads: int = 0,
    ):
        path = Path(directory) / MODEL_FILE
        threads = intra_op_num_threads or omp_num_threads or 0
        self.session = _start(path, _options(threads, inter_op_num_threads), device, device_id)
        self._of_one_thread: onnxruntime.InferenceSession | None = None
        self._input_names = [node.name for node in self.session.get_inputs()]
        preprocessor = load_preprocessor(path.parent)
        super().__init__(preprocessor, _dim(path.parent, self.session, preprocessor.modality), batch_size)
        if device == 'cpu' and preprocessor.modality == 'text':
            self.padded_freely = 0  # another batch costs next to nothing
            self.part_tokens = _PART_TOKENS
            self._compute_side_by_side(path, threads or _cores())

    def _compute_side_by_side(self, path: Path, threads: int) -> None:
        """Threads that are at a batch each wait less for one another than those that share every operator."""
        if threads == 1:
            return
        if path.stat().st_size <= _MAX_TWICE:
            self._of_one_thread = _start(path, _options(1, 0), 'cpu', 0)
            self.pool = Pool(threads)
        else:
            self.pool = Pool(min(threads, _AT_ONCE))

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._run(self.session, inputs)

    def embed_beside(self, features: Sequence[np.ndarray], others: int) -> np.ndarray:
        if self._of_one_thread is None or self.pool is None or others + 1 < self.pool.threads:
            return self.embed(features)
        return self._run(self._of_one_thread, self.preprocessor.collate(features))

    def _run(self, session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> np.ndarray:
        (embeddings,) = session.run([OUTPUT_NAME], {name: inputs[name] for name in self._input_names})
        return embeddings


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _options(threads: int, operators: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = operators
    # most operators take less time than a thread that sleeps takes to wake; one that is awake for longer takes its core
    # from whoever computes next
    for kind in ('intra_op', 'inter_op'):
        options.add_session_config_entry(f'session.{kind}.spin_duration_us', _SPIN)
    if operators > 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    return options


def _start(
    path: Path, options: onnxruntime.SessionOptions, device: str, device_id: int
) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise ValueError(f'{path.parent} has no {path.name}: load it with is_onnx=False')
    providers: list[str | tuple[str, dict[str, int]]] = ['CPUExecutionProvider']
    if device == 'cuda':
        if 'CUDAExecutionProvider' in onnxruntime.get_available_providers():
            onnxruntime.preload_dlls()  # the CUDA libraries that came as Python packages
            providers.insert(0, ('CUDAExecutionProvider', {'device_id': device_id}))
        else:
            warnings.warn(
                "device 'cuda' was asked for, but this onnxruntime has no CUDA: install onnxruntime-gpu in its place "
                '(requirements-gpu.txt). Running on the CPU.',
                RuntimeWarning,
                stacklevel=4,
            )
    slower = _SLOWER if len(providers) == 1 else set()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers, disabled_optimizers=slower)
    except Exception as error:  # the library's exceptions have no common base
        raise ValueError(f'onnxruntime cannot load {path}: {error}') from error
    if len(providers) > 1 and 'CUDAExecutionProvider' not in session.get_providers():
        raise RuntimeError(
            f"device 'cuda' was asked for, but onnxruntime could not use GPU {device_id} (its log above says why): "
            "use device='cpu', or install the CUDA and cuDNN versions that onnxruntime-gpu needs"
        )
    return session


def _dim(directory: Path, session: onnxruntime.InferenceSession, modality: Modality) -> int:
    outputs = {node.name: node.shape for node in session.get_outputs()}
    inputs = {node.name for node in session.get_inputs()}
    unknown = inputs - _INPUTS[modality]
    if OUTPUT_NAME not in outputs or unknown:
        what = f'needs the inputs {sorted(unknown)}' if unknown else f'has no output {OUTPUT_NAME!r}'
        raise ValueError(f'{directory / MODEL_FILE} {what}: load the directory with is_onnx=False')
    return int(outputs[OUTPUT_NAME][-1])
