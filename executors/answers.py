"""What the endpoints answer with: documents whose tags hold the answer."""

from __future__ import annotations

from typing import Any

from finetuner.documents import Document, DocumentArray
from registry import ExperimentRecord, RunRecord

INT32 = range(-(2**31), 2**31)


def answer(text: str | None = None, blob: bytes | None = None, **tags: Any) -> DocumentArray:
    """One document with these tags, and with text or bytes beside them."""
    return DocumentArray([Document(text=text, blob=blob, tags=_wire(tags))])


def describe_run(run: RunRecord) -> Document:
    """A document whose tags tell all about a run but its results."""
    tags = {
        'name': run.name,
        'experiment_name': run.experiment_name,
        'status': run.status,
        'details': run.details,
        'description': run.description,
        'artifact_id': run.artifact_id,
        'created_at': run.created_at.isoformat(),
        'config': run.config,
        'progress': run.progress,
    }
    return Document(tags=_wire(tags))


def describe_experiment(experiment: ExperimentRecord) -> Document:
    """A document whose tags tell all about an experiment."""
    tags = {
        'name': experiment.name,
        'status': 'ACTIVE',
        'description': experiment.description,
        'created_at': experiment.created_at.isoformat(),
        'runs': experiment.runs,
    }
    return Document(tags=_wire(tags))


def _wire(value: Any) -> Any:
    """The value as a message can carry it: an integer beyond 32 bits becomes a float."""
    if isinstance(value, dict):
        return {key: _wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_wire(item) for item in value]
    if isinstance(value, int) and value not in INT32:
        return float(value)
    return value
