"""The functions of `finetuner` for using a model on this machine: get_model, build_model, encode."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from finetuner.inference.engine import InferenceEngine, check_batch_size
from finetuner.inference.loading import best_device, load_engine
from finetuner.inference.remote import resolve_artifact

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

    :param artifact: a run's artifact id, a zip, its unpacked folder, one model's folder in it, a URL, or a hub id.
    :param token: for an artifact id: default is the one of `finetuner.login`.
    :param batch_size: how many texts the model is given at once.
    :param select_model: which model of an artifact with several.
    :param device: `cpu` or `cuda`; None is `cuda` where there is one that the engine can use.
    :param logging_level: of the logger `finetuner`.
    :param is_onnx: run with onnxruntime or torch; None is onnxruntime where the artifact has an ONNX model.
    :raises ArtifactError: the artifact is not there, damaged or unsafe.
    :raises SelectModelRequired: the artifact has several models and none was selected.
    """
    logging.getLogger('finetuner').setLevel(logging_level.upper())
    return load_engine(
        resolve_artifact(artifact, token),
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

    :param name: a short name such as `all-minilm-l6-v2`, a hub id or a model directory.
    :param model_options: `pooling` (mean, cls, max, lasttoken) and `max_length`, where the model's own will not do.
    :param batch_size: how many texts the model is given at once.
    :param select_model: has no effect: a text model is one model.
    :param device: `cpu` or `cuda`; None is `cuda` where there is one.
    :param is_onnx: must be False: pretrained models are run with torch.
    :raises ValueError: the model is not to be found, or an option is unknown.
    """
    if is_onnx:
        raise ValueError('pretrained models are run with torch: leave is_onnx=False, or fine-tune to get an ONNX model')
    options = model_options or {}
    if unknown := sorted(set(options) - {'pooling', 'max_length'}):
        raise ValueError(f'unknown model_options {", ".join(unknown)}: known are pooling and max_length')
    from finetuner.inference.text_encoder import TextEncoder
    from finetuner.inference.torch_engine import TorchInferenceEngine

    encoder = TextEncoder.load(name, **options)
    return TorchInferenceEngine(encoder, batch_size=batch_size, device=device or best_device(is_onnx=False))


@overload
def encode(model: InferenceEngine, data: DocumentArray, batch_size: int = 32) -> DocumentArray: ...


@overload
def encode(model: InferenceEngine, data: list[str], batch_size: int = 32) -> np.ndarray: ...


def encode(model: InferenceEngine, data: DocumentArray | list[str], batch_size: int = 32) -> DocumentArray | np.ndarray:
    """Embed documents or texts, with a progress bar if it takes more than a few batches.

    :param model: from :func:`get_model` or :func:`build_model`.
    :param batch_size: how many texts the model is given at once.
    :return: for documents the same documents, with `embedding` set; for texts float32 [N, D].
    :raises DataError: a document has no text, or an item of the list is not a text.
    """
    if len(data) <= _FEW_BATCHES * check_batch_size(batch_size):
        return _encode(model, data, batch_size, None)
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    from finetuner.console import make_progress

    with make_progress(MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task('Encoding', total=len(data))
        return _encode(model, data, batch_size, lambda count: bar.advance(task, count))


def _encode(model: InferenceEngine, data: Any, batch_size: int, progress: Callable[[int], object] | None) -> Any:
    holds_documents = hasattr(type(data), 'embeddings') or hasattr(next(iter(data), None), 'embedding')
    return (model.encode if holds_documents else model.encode_texts)(data, batch_size, progress)
