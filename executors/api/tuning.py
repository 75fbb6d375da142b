"""Fine-tuning tasks, with the routes, bodies and codes of Embedding Studio's first version.

Beside what it answered there is why a task failed (`error`), and whether its model took the place of the one before
(`promoted`, with `details` and `metrics`). A method that there is not is refused here, not later.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from executors.api.request import Call, make_router
from executors.openapi import NOT_FOUND
from executors.parameters import INT32
from executors.told import Sent, Told

router = make_router('fine-tuning')
MISSING: dict[int | str, dict[str, Any]] = {404: {'description': NOT_FOUND}}

Status = Literal['pending', 'processing', 'done', 'canceled', 'error']
TaskId = Annotated[str, Path(pattern=r'^[^/]{1,200}$')]


class NewTask(BaseModel):
    """What is to be learned, and from which clicks: without `batch_id`, from those that collect when it begins.

    What is unknown here is dropped.
    """

    model_config = ConfigDict(extra='ignore', hide_input_in_errors=True)

    fine_tuning_method: str = Field(min_length=1, max_length=200, description='Such as `text-to-text`.')
    batch_id: str | None = Field(default=None, min_length=1, max_length=200)
    metadata: Sent | None = None
    idempotency_key: UUID | None = Field(default=None, description='The same one again gives the same task.')


class Task(BaseModel):
    """A task as it stands; what is not known is left out. Times are in UTC."""

    id: str
    fine_tuning_method: str
    status: Status
    created_at: str
    updated_at: str
    batch_id: str | None = None
    best_model_url: str | None = Field(
        default=None, description='The best model of the task, promoted or not: a zip file, for whoever sends a token.'
    )
    metadata: Told | None = None
    idempotency_key: str | None = None
    error: str | None = Field(default=None, description='Why it failed, in one sentence.')
    promoted: bool | None = Field(default=None, description='Whether its model took the place of the one before.')
    details: str | None = Field(default=None, description='Why, or what is being done, in one sentence.')
    metrics: dict[str, Any] | None = Field(default=None, description='Of held-out sessions, before and after.')
    progress: dict[str, Any] | None = None
    run_name: str | None = Field(default=None, description='Of the experiment `fine-tuning`: its logs are here.')


class TaskStatus(BaseModel):
    id: str
    status: Status


@router.post('/fine-tuning/task', operation_id='create_task', responses=MISSING, response_model_exclude_none=True)
async def create(body: NewTask, call: Call, request: Request) -> Task:
    key = None if body.idempotency_key is None else str(body.idempotency_key)
    given = body.model_dump() | {'idempotency_key': key}
    return _read(await call.tags('/create_tuning_task', **given), request)


@router.get('/fine-tuning/task', operation_id='list_tasks', response_model_exclude_none=True)
async def list_some(
    call: Call,
    request: Request,
    skip: Annotated[int, Query(ge=0, le=INT32)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    status: Status | None = None,
) -> list[Task]:
    """Some tasks, the oldest first."""
    found = await call.tags('/tuning_tasks', skip=skip, limit=limit, status=status)
    return [_read(tags, request) for tags in found['items']]


@router.get('/fine-tuning/task/{task_id}', operation_id='get_task', responses=MISSING, response_model_exclude_none=True)
async def get(task_id: TaskId, call: Call, request: Request) -> Task:
    return _read(await call.tags('/tuning_task', task_id=task_id), request)


@router.put('/fine-tuning/task/{task_id}/cancel', operation_id='cancel_task', responses=MISSING)
async def cancel(task_id: TaskId, call: Call) -> TaskStatus:
    """End a task, whatever its status. What was promoted stays so."""
    return TaskStatus(**await call.tags('/cancel_tuning_task', task_id=task_id))


@router.put('/fine-tuning/task/{task_id}/restart', operation_id='restart_task', responses=MISSING)
async def restart(task_id: TaskId, call: Call) -> TaskStatus:
    """Have a task that has ended worked on again, with the batch that it had. One that waits or is at work goes on."""
    return TaskStatus(**await call.tags('/restart_tuning_task', task_id=task_id))


def _read(tags: dict[str, Any], request: Request) -> Task:
    status, metrics = tags['status'], tags['metrics']
    artifact = tags['artifact_id'] if status == 'done' else None
    values: dict[str, Any] = {
        **tags,
        'created_at': _utc(tags['created_at']),
        'updated_at': _utc(tags['updated_at']),
        'best_model_url': None if artifact is None else f'{_base(request)}/api/v1/artifacts/{artifact}',
        'error': tags['details'] if status == 'error' else None,
        'promoted': (metrics or {}).get('promoted') if status == 'done' else None,
        'progress': tags['progress'] if status == 'processing' else None,
        'metrics': metrics if status == 'done' else None,
    }
    return Task(**values)


def _base(request: Request) -> str:
    """Where clients reach this service: by `FINETUNER_PUBLIC_URL`, or as this one did."""
    return (os.environ.get('FINETUNER_PUBLIC_URL') or str(request.base_url)).rstrip('/')


def _utc(time: str) -> str:
    """Without the time zone, as the first version wrote it."""
    return datetime.fromisoformat(time).astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')
