"""What the endpoints answer with: documents whose tags hold the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

from finetuner.documents import Document, DocumentArray
from registry import (
    ArtifactRecord,
    DatasetSummary,
    ExperimentRecord,
    Page,
    Promotion,
    RunRecord,
    Shard,
    Token,
    Usage,
)
from registry.click_records import ClickBatch, ClickSession
from registry.records import TuningTask
from registry.tuning_tasks import EXPERIMENT

Item = TypeVar('Item')

INT32 = range(-(2**31), 2**31)


def answer(text: str | None = None, blob: bytes | None = None, **tags: Any) -> DocumentArray:
    """One document with these tags, and with text or bytes beside them."""
    return DocumentArray([Document(text=text, blob=blob, tags=wire(tags))])


def answer_page(page: Page[Item], describe: Callable[[Item], dict[str, Any]]) -> DocumentArray:
    """One document whose tags hold a page of a list: `items`, `total`, `page`, `size`."""
    items = [describe(item) for item in page.items]
    return answer(items=items, total=page.total, page=page.number, size=page.size)


def describe_run(run: RunRecord) -> dict[str, Any]:
    """All about a run but its results."""
    return {
        'id': run.id,
        'name': run.name,
        'experiment_name': run.experiment_name,
        'status': run.status,
        'details': run.details,
        'description': run.description,
        'artifact_id': run.artifact_id,
        'created_at': run.created_at.isoformat(),
        'config': run.config,
        'progress': run.progress,
        'priority': run.priority,
        'attempts': run.attempts,
        'queue_position': run.queue_position,
    }


def describe_experiment(experiment: ExperimentRecord) -> dict[str, Any]:
    """All about an experiment."""
    return {
        'name': experiment.name,
        'status': 'ACTIVE',
        'description': experiment.description,
        'created_at': experiment.created_at.isoformat(),
        'runs': experiment.runs,
    }


def describe_dataset(dataset: DatasetSummary) -> dict[str, Any]:
    """All about a data set but its parts."""
    return {
        'name': dataset.name,
        'rows': dataset.rows,
        'size': dataset.size,
        'digest': dataset.digest,
        'shape': dataset.shape,
        'modalities': list(dataset.modalities),
        'labelled': dataset.labelled,
        'scored': dataset.scored,
        'created_at': dataset.created_at.isoformat(),
    }


def describe_part(shard: Shard) -> dict[str, Any]:
    """All about a part of a data set."""
    return {
        'part': shard.part,
        'rows': shard.rows,
        'size': shard.size,
        'sha256': shard.sha256,
        'content_digest': shard.content_digest,
    }


def describe_usage(usage: Usage) -> dict[str, Any]:
    """What an account has, and what it may have."""
    return {
        'account': usage.account.name,
        **{kind: asdict(getattr(usage, kind)) for kind in ('datasets', 'artifacts', 'checkpoints', 'search_items')},
        'runs': {'waiting': usage.waiting, 'at_work': usage.at_work, 'total': usage.runs},
        'max_bytes': usage.account.max_bytes,
        'max_runs': usage.account.max_runs,
        'max_search_bytes': usage.max_search_bytes,
    }


def describe_token(token: Token) -> dict[str, Any]:
    """All about a token but the token itself."""
    return {
        'id': token.id,
        'name': token.name,
        'created_at': token.created_at.isoformat(),
        'expires_at': _time(token.expires_at),
        'revoked_at': _time(token.revoked_at),
    }


def describe_artifact(artifact: ArtifactRecord) -> dict[str, Any]:
    """All about an artifact of the account that asks."""
    return {
        'id': artifact.id,
        'name': artifact.name,
        'experiment_name': artifact.experiment_name,
        'run_name': artifact.name,
        'size': artifact.size,
        'sha256': artifact.sha256,
        'public': artifact.public,
        'created_at': artifact.created_at.isoformat(),
        'aliases': list(artifact.aliases),
    }


def describe_promotion(promotion: Promotion) -> dict[str, Any]:
    """What an alias names, or has named."""
    return {
        'alias': promotion.alias,
        'artifact_id': promotion.artifact_id,
        'number': promotion.number,
        'previous': promotion.previous,
        'experiment_name': promotion.experiment_name,
        'run_name': promotion.run_name,
        'created_at': promotion.created_at.isoformat(),
    }


def describe_task(task: TuningTask) -> dict[str, Any]:
    """All about a fine-tuning task."""
    return {
        'id': task.id,
        'fine_tuning_method': task.method,
        'status': task.status,
        'details': task.details,
        'batch_id': task.batch_id,
        'idempotency_key': task.idempotency_key,
        'metadata': task.metadata,
        'created_at': task.created_at.isoformat(),
        'updated_at': task.updated_at.isoformat(),
        'experiment_name': EXPERIMENT,
        'run_name': task.run_name,
        'artifact_id': task.artifact_id,
        'progress': task.progress,
        'metrics': task.metrics,
    }


def _time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def describe_session(session: ClickSession) -> dict[str, Any]:
    """All about a click session, its events included. Times are seconds since 1970."""
    return {
        'session_id': session.session_id,
        'search_query': session.search_query,
        'search_results': [
            {'object_id': result.object_id, 'rank': result.rank, 'meta': result.meta}
            for result in session.search_results
        ],
        'search_meta': session.search_meta,
        'user_id': session.user_id,
        'created_at': int(session.created_at.timestamp()),
        'is_irrelevant': session.is_irrelevant,
        'events': [
            {
                'event_id': event.event_id,
                'object_id': event.object_id,
                'event_type': event.event_type,
                'created_at': int(event.created_at.timestamp()),
                'meta': event.meta,
            }
            for event in session.events
        ],
    }


def describe_batch(batch: ClickBatch) -> dict[str, Any]:
    """All about a batch of click sessions. Times are seconds since 1970."""
    return {
        'batch_id': batch.id,
        'status': batch.status,
        'sessions': batch.sessions,
        'created_at': int(batch.created_at.timestamp()),
        'release_id': batch.release_id,
        'released_at': None if batch.released_at is None else int(batch.released_at.timestamp()),
    }


def wire(value: Any) -> Any:
    """The value as a message can carry it: an integer beyond 32 bits becomes a float."""
    if isinstance(value, dict):
        return {key: wire(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [wire(item) for item in value]
    if isinstance(value, int) and value not in INT32:
        return float(value)
    return value
