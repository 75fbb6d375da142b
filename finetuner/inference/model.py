"""The functions of `finetuner` for using a model on this machine: get_model, build_model, encode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from finetuner.inference.engine import InferenceEngine, check_batch_size
from finetuner.inference.loading import best_device, load_engine, named_installs
from finetuner.inference.remote import resolve_named

if TYPE_CHECKING:
    import numpy as np

    from finetuner.documents import DocumentArray

_FEW_BATCHES = 4


def get_model(
    artifact: str | Path,
    token: str | None = None,
    batch_size: int = 32,
    select_model: str | None = None,
    device: str | None = None,
    logging_level: str = 'WARNING',
    is_onnx: bool | None = None,
) -> InferenceEngine:
    """Load a fine-tuned model on this machine.

    :param artifact: a run's artifact id, 'experiment/run', or an alias such as 'support@production'; a zip, its
        unpacked folder, one model's folder in it, a URL, a hub id, or its page on huggingface.co. A path that exists is
        a path; 'organization/model' is a hub id unless the service has such a run.
    :param token: for artifacts of the service: default is the one of `finetuner.login`. Private models of the hub need
        HF_TOKEN.
    :param batch_size: how many items the model is given at once.
    :param select_model: `clip-text` or `clip-vision`, of a CLIP model; others ignore it.
    :param device: `cpu` or `cuda`; None is `cuda` where there is one that the engine can use.
    :param logging_level: of the logger `finetuner`.
    :param is_onnx: run with onnxruntime or torch; None is onnxruntime where the artifact has an ONNX model.
    :raises ArtifactError: the artifact is not there, damaged or unsafe.
    :raises SelectModelRequired: the artifact has several models and none was selected.
    """
    logging.getLogger('finetuner').setLevel(logging_level.upper())
    return load_engine(
        resolve_named(artifact, token),
        select_model=select_model,
        is_onnx=is_onnx,
        device=device,
        batch_size=batch_size,
    )


def build_model(
    name: str,
    model_options: dict[str, Any] | None = None,
    batch_size: int = 32,
    select_model: str | None = None,
    device: str | None = None,
    is_onnx: bool = False,
) -> InferenceEngine:
    """Load a pretrained model on this machine, as it was before any fine-tuning.

    :param name: one of `finetuner.list_models()`, a model directory, or a name that transformers, torchvision, timm or
        open_clip knows; see :func:`finetuner.inference.backbones.load_encoders`.
    :param model_options: as `list_model_options()` names them, and `max_length` for models that take texts.
    :param batch_size: how many items the model is given at once.
    :param select_model: `clip-text` or `clip-vision`, of a CLIP model; others ignore it.
    :param device: `cpu` or `cuda`; None is `cuda` where there is one.
    :param is_onnx: must be False: pretrained models are run with torch.
    :raises SelectModelRequired: it is a CLIP model, and none of its two was selected.
    :raises ValueError: the model is not to be found, or an option is unknown.
    """
    if is_onnx:
        raise ValueError('pretrained models are run with torch: leave is_onnx=False, or fine-tune to get an ONNX model')
    options = dict(model_options or {})
    max_length = options.pop('max_length', None)
    with named_installs():
        from finetuner.inference.backbones import load_encoder
        from finetuner.inference.torch_engine import TorchInferenceEngine

        encoder = load_encoder(name, options=options, max_length=max_length, select=select_model)
    return TorchInferenceEngine(encoder, batch_size=batch_size, device=device or best_device(is_onnx=False))


@overload
def encode(model: InferenceEngine, data: DocumentArray, batch_size: int = 32) -> DocumentArray: ...


@overload
def encode(model: InferenceEngine, data: Sequence[Any] | np.ndarray, batch_size: int = 32) -> np.ndarray: ...


def encode(
    model: InferenceEngine, data: DocumentArray | Sequence[Any] | np.ndarray, batch_size: int = 32
) -> DocumentArray | np.ndarray:
    """Embed documents or contents, with a progress bar if it takes more than a few batches.

    :param model: from :func:`get_model` or :func:`build_model`.
    :param data: documents; or a list of what the model takes: texts, or paths, URLs, bytes or arrays of images or
        meshes. For models that take tensors, an array [N, D].
    :param batch_size: how many items the model is given at once.
    :return: for documents the same documents, with `embedding` set; otherwise float32 [N, D].
    :raises DataError: an item is not what the model takes, or cannot be read; the message says which.
    :raises ValueError: a list is given to a model that takes tensors.
    """
    if len(data) <= _FEW_BATCHES * check_batch_size(batch_size):
        return _encode(model, data, batch_size, None)
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    from finetuner.console import make_progress

    with make_progress(MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task('Encoding', total=len(data))
        return _encode(model, data, batch_size, lambda count: bar.advance(task, count))


def _encode(model: InferenceEngine, data: Any, batch_size: int, progress: Callable[[int], object] | None) -> Any:
    if hasattr(type(data), 'embeddings') or hasattr(next(iter(data), None), 'embedding'):
        return model.encode(data, batch_size, progress)
    if model.modality == 'text':
        return model.encode_texts(data, batch_size, progress)
    if model.modality == 'tensor' and not hasattr(data, 'shape'):
        raise ValueError('MLP model does not support values from a list.')
    return model.encode_contents(data, batch_size, progress)
