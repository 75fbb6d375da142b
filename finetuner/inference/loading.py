"""From an artifact, a model directory or a name to an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuner.artifact import Artifact, open_artifact
from finetuner.artifact.opening import is_artifact_directory
from finetuner.excepts import ArtifactError
from finetuner.inference.engine import InferenceEngine
from finetuner.inference.fastest import Choices, choose, choose_again

if TYPE_CHECKING:
    from finetuner.inference.encoder import Encoder

_logger = logging.getLogger(__name__)

_FOR_BOTH = 512 << 20  # bytes of the largest model that may be kept with two engines

DEVICES = ('cpu', 'cuda')
MODEL = 'model'
"""The name of a model that is alone."""

_INSTALL = {
    'onnxruntime': 'inference',
    'tokenizers': 'inference',
    'PIL': 'inference',
    'trimesh': 'inference',
    'ftfy': 'inference',
    'torch': 'torch',
    'transformers': 'torch',
    'safetensors': 'torch',
    'torchvision': 'torch',
    'timm': 'torch',
    'open_clip': 'torch',
}


def load_engine(
    artifact: Artifact | Encoder | str | Path,
    *,
    select_model: str | None = None,
    is_onnx: bool | None = None,
    device: str | None = 'cpu',
    device_id: int = 0,
    batch_size: int = 32,
    omp_num_threads: int | None = None,
    intra_op_num_threads: int = 0,
    inter_op_num_threads: int = 0,
    precision: str = 'fp32',
    choices: Choices | None = None,
) -> InferenceEngine:
    """Load a model for inference.

    :param artifact: an artifact, opened or not, zipped or not; a model directory; a short name or hub id; or an encoder
        that is loaded.
    :param select_model: which model of an artifact, or encoder of a pretrained model, with several; those with one
        ignore it.
    :param is_onnx: onnxruntime or torch; None is onnxruntime where there is a `model.onnx`, and `precision` is fp32.
    :param device: `cpu` or `cuda`; None is `cuda` where there is one that the engine can use.
    :param device_id: which of several GPUs.
    :param batch_size: how many items the model is given at once.
    :param omp_num_threads: as `intra_op_num_threads`, where that is 0; None leaves the choice to the engine.
    :param intra_op_num_threads: threads that compute one operator; 0 leaves the choice to the engine.
    :param inter_op_num_threads: operators that run at the same time (onnxruntime only).
    :param precision: `fp32`, or with torch `bf16` or `fp16`. An ONNX model has the one that it was exported with.
    :param choices: where `is_onnx` and `precision` leave the choice, try both, and take the faster one; of a text
        model up to 512 MiB on the CPU it may be each for the batches in which it is faster. The choice is kept in
        here, and a model of the same shape, whose ONNX file has as many bytes, is not tried again.
    :raises ArtifactError: the artifact is not there, damaged or unsafe.
    :raises SelectModelRequired: there are several models and none was selected.
    :raises ValueError: an argument is wrong, or the model is not supported; the message says which.
    :raises RuntimeError: the device cannot be used.
    """
    if device is not None and device not in DEVICES:
        raise ValueError(f'unknown device {device!r}: it is one of {", ".join(DEVICES)}')
    threads = {
        'omp_num_threads': omp_num_threads,
        'intra_op_num_threads': intra_op_num_threads,
        'inter_op_num_threads': inter_op_num_threads,
    }
    for name, value in {'device_id': device_id, **threads}.items():
        if value is not None and value < 0:
            raise ValueError(f'{name} is {value}: it cannot be negative')
    source = find_source(artifact, select_model) if isinstance(artifact, (Artifact, str, Path)) else artifact
    if is_onnx and not isinstance(source, Path):
        raise ValueError(f'the pretrained model {source!r} has no ONNX model: load it with is_onnx=False')
    if is_onnx and precision != 'fp32':
        raise ValueError(f'precision {precision!r} is of torch: give is_onnx=False, or export the ONNX model in it')
    options: dict[str, Any] = {'batch_size': batch_size, 'device_id': device_id, **threads}
    of_torch = {'select_model': select_model, 'precision': precision}
    load = partial(_load, source, device, options, of_torch)
    if is_onnx is not None:
        return load(is_onnx)
    has_onnx = isinstance(source, Path) and (source / 'model.onnx').is_file()
    if isinstance(source, Path) and has_onnx and precision == 'fp32' and choices is not None and find_spec('torch'):
        return _load_fastest(load, (source / 'model.onnx').stat().st_size, device, choices)
    return load(has_onnx and precision == 'fp32')


def _load_fastest(
    load: Callable[[bool], InferenceEngine], size: int, device: str | None, choices: Choices
) -> InferenceEngine:
    if size in choices:
        return choose_again(load, choices[size])
    engine, choices[size] = choose(load, may_keep_both=size <= _FOR_BOTH and device == 'cpu')
    return engine


def _load(
    source: Encoder | Path | str,
    device: str | None,
    options: dict[str, Any],
    of_torch: dict[str, Any],
    is_onnx: bool,
) -> InferenceEngine:
    device = device or best_device(is_onnx)
    options = {'device': device, **options, **({} if is_onnx else of_torch)}
    with named_installs():
        engine = _engine_class(is_onnx)
        loaded: InferenceEngine = engine(source, **options)
    _logger.info(
        'loaded %s with %s on %s: %d dimensions, %s, %s threads',
        source if isinstance(source, (str, Path)) else type(source).__name__,
        engine.__name__,
        device,
        loaded.dim,
        loaded.modality if loaded.max_length is None else f'{loaded.max_length} tokens at most',
        options['intra_op_num_threads'] or options['omp_num_threads'] or 'default',
    )
    return loaded


def load_engines(artifact: Artifact | str | Path, **options: Any) -> dict[str, InferenceEngine]:
    """Load all models of an artifact, or all encoders of a pretrained model, by name: two of CLIP, one of others.

    :param artifact: as of :func:`load_engine`.
    :param options: of :func:`load_engine`, but `select_model`.
    :raises ArtifactError: the artifact is not there, damaged or unsafe.
    :raises ValueError: an option is wrong, or the model is not supported.
    """
    opened = _opened(artifact)
    if isinstance(opened, Artifact):
        return {name: load_engine(opened, select_model=name, **options) for name in sorted(opened.models)}
    if options.get('is_onnx') or (isinstance(opened, Path) and (opened / 'model.onnx').is_file()):
        return {MODEL: load_engine(opened, **options)}
    with named_installs():
        from finetuner.inference.backbones import load_encoders

        # together, for those of CLIP are two sides of one model
        encoders = load_encoders(opened)
    return {name: load_engine(encoder, **options) for name, encoder in encoders.items()}


def best_device(is_onnx: bool) -> str:
    """`cuda` if onnxruntime, or else torch, can use one here, `cpu` if not."""
    with named_installs():
        if is_onnx:
            import onnxruntime

            return 'cuda' if 'CUDAExecutionProvider' in onnxruntime.get_available_providers() else 'cpu'
        import torch

        return 'cuda' if torch.cuda.is_available() else 'cpu'


def find_source(artifact: Artifact | str | Path, select_model: str | None) -> Path | str:
    """The model directory that is meant, or the name of a pretrained model."""
    opened = _opened(artifact)
    return opened.model_directory(opened.select(select_model)) if isinstance(opened, Artifact) else opened


def _opened(artifact: Artifact | str | Path) -> Artifact | Path | str:
    """An artifact opened, a model directory, or the name of a pretrained model."""
    if isinstance(artifact, Artifact):
        return artifact
    path = Path(artifact).expanduser()
    if path.is_dir() and not is_artifact_directory(path):
        return path
    if not path.exists():
        if isinstance(artifact, str) and not _is_path(artifact):
            return artifact
        raise ArtifactError(f'there is no artifact {str(artifact)!r}: no such file or directory')
    return open_artifact(path)


def _is_path(text: str) -> bool:
    return text.startswith(('/', '.', '~')) or text.endswith('.zip') or text.count('/') > 1


def _engine_class(is_onnx: bool) -> Any:
    if is_onnx:
        from finetuner.inference.onnx_engine import ONNXRuntimeInferenceEngine

        return ONNXRuntimeInferenceEngine
    from finetuner.inference.torch_engine import TorchInferenceEngine

    return TorchInferenceEngine


@contextmanager
def named_installs() -> Iterator[None]:
    """Say of a library that is missing how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or '').partition('.')[0]
        if library not in _INSTALL or 'pip install' in str(error):
            raise
        raise ModuleNotFoundError(
            f'{library} is not installed: pip install "finetuner[{_INSTALL[library]}]"', name=library
        ) from error
