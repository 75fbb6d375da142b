"""What a user imports: documents, the client, the artifact format and the engines that serve it.

It imports none of the other rooms, and quickly: docarray, torch and onnxruntime are loaded when they are first needed.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from finetuner import callback, model
from finetuner.client.account import create_token, list_tokens, revoke_token, usage, whoami
from finetuner.client.aliases import delete_alias, get_alias, list_aliases, promote, rollback
from finetuner.client.artifacts import download_artifact, list_artifacts
from finetuner.client.datasets import delete_dataset, get_dataset, list_datasets
from finetuner.client.experiments import (
    create_experiment,
    delete_experiment,
    delete_experiments,
    get_experiment,
    list_experiments,
)
from finetuner.client.session import get_token, login, login_required, logout
from finetuner.client.training import delete_run, delete_runs, fit, get_run, list_runs
from finetuner.data import CSVOptions
from finetuner.experiment import Experiment
from finetuner.finetuner import Finetuner
from finetuner.models import describe_models, list_model_options, list_models
from finetuner.run import Run

if TYPE_CHECKING:
    from finetuner.client.encode_client import EncodeClient
    from finetuner.documents import Content, Document, DocumentArray
    from finetuner.inference import build_model, encode, get_model

create_training_run = create_run = fit

_LAZY = {
    'Content': 'finetuner.documents',
    'Document': 'finetuner.documents',
    'DocumentArray': 'finetuner.documents',
    'EncodeClient': 'finetuner.client.encode_client',
    'build_model': 'finetuner.inference',
    'encode': 'finetuner.inference',
    'get_model': 'finetuner.inference',
}

__all__ = [
    'CSVOptions',
    'Content',
    'Document',
    'DocumentArray',
    'EncodeClient',
    'Experiment',
    'Finetuner',
    'Run',
    'build_model',
    'callback',
    'cos_sim',
    'create_experiment',
    'create_run',
    'create_token',
    'create_training_run',
    'delete_alias',
    'delete_dataset',
    'delete_experiment',
    'delete_experiments',
    'delete_run',
    'delete_runs',
    'describe_models',
    'download_artifact',
    'encode',
    'fit',
    'get_alias',
    'get_dataset',
    'get_experiment',
    'get_model',
    'get_run',
    'get_token',
    'list_aliases',
    'list_artifacts',
    'list_callbacks',
    'list_datasets',
    'list_experiments',
    'list_model_options',
    'list_models',
    'list_runs',
    'list_tokens',
    'login',
    'login_required',
    'logout',
    'model',
    'promote',
    'revoke_token',
    'rollback',
    'usage',
    'whoami',
]


def cos_sim(a: Any, b: Any) -> float:
    """Cosine similarity of two vectors: 1 for the same direction, 0 for none in common.

    :raises ValueError: a vector is zero, or they differ in length.
    """
    import numpy as np

    a, b = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    if a.shape != b.shape:
        raise ValueError(f'the vectors have {len(a)} and {len(b)} dimensions: they must be of one model')
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    if norms == 0:
        raise ValueError('a vector is zero: it has no direction')
    return float(a @ b / norms)


def list_callbacks() -> dict[str, type]:
    """The callbacks that `fit` knows, by name."""
    return {name: item for name, item in vars(callback).items() if dataclasses.is_dataclass(item)}  # type: ignore[misc]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
