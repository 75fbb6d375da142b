"""Fine-tuning tasks: what a client asked for, and the run that carries it. The status of a task is that of its run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, not_, or_, select
from sqlalchemy.orm import Session

from finetuner.constants import TUNING_TASK
from finetuner.excepts import NotFoundError, RegistryError
from registry import runs
from registry.accounts import lock_account
from registry.click_batches import get_batch
from registry.click_records import RELEASED
from registry.models import RunRow, TuningTaskRow, now
from registry.names import new_id
from registry.quotas import check_room
from registry.records import CANCELLED, CREATED, FAILED, FINISHED, STARTED, TuningTask

EXPERIMENT = 'fine-tuning'
"""What holds the runs of tasks."""
TASK = TUNING_TASK
PENDING, PROCESSING, DONE, ERROR, CANCELED = 'pending', 'processing', 'done', 'error', 'canceled'
STATUSES = {CREATED: PENDING, STARTED: PROCESSING, FINISHED: DONE, FAILED: ERROR, CANCELLED: CANCELED}
"""Of a task, by that of its run."""


def create_task(
    session: Session,
    account_id: str,
    method: str,
    config: dict[str, Any],
    batch_id: str | None,
    metadata: dict[str, Any] | None,
    idempotency_key: str | None,
) -> tuple[TuningTask, bool]:
    """The task of this key, or a new one; and whether it is new.

    :raises NotFoundError: there is no such batch.
    :raises RegistryError: the batch still collects, or the account is at the end of its quota.
    """
    lock_account(session, account_id)  # two posts of one key, at once, make one task
    if idempotency_key is not None:
        query = _owned(account_id).where(TuningTaskRow.idempotency_key == idempotency_key)
        if (row := session.scalar(query)) is not None:
            return _read(row), False
    if batch_id is not None and get_batch(session, account_id, batch_id).status != RELEASED:
        raise RegistryError(f'The batch {batch_id!r} still collects: release it first, or leave batch_id out')
    task_id, time = new_id(), now()
    row = TuningTaskRow(
        id=task_id,
        created_at=time,
        updated_at=time,
        account_id=account_id,
        method=method,
        batch_id=batch_id,
        idempotency_key=idempotency_key,
        meta=metadata,
        run_id=_create_run(session, account_id, task_id, config, f'task-{task_id}'),
    )
    session.add(row)
    session.flush()
    return _read(row), True


def get_task(session: Session, account_id: str, task_id: str) -> TuningTask:
    """:raises NotFoundError: the account has none of this id."""
    return _read(_find(session, account_id, task_id))


def get_task_by_id(session: Session, task_id: str) -> TuningTask:
    """For the service itself: no owner is checked.

    :raises NotFoundError: there is none of this id.
    """
    return _read(_get(session, task_id))


def list_tasks(session: Session, account_id: str, skip: int, limit: int, status: str | None) -> list[TuningTask]:
    """Some tasks, the oldest first."""
    query = _owned(account_id)
    if status is not None:
        query = query.where(_has_status(status))
    query = query.order_by(TuningTaskRow.created_at, TuningTaskRow.id).offset(skip).limit(limit)
    return _read_all(session.scalars(query).all())


def cancel_task(session: Session, account_id: str, task_id: str) -> TuningTask:
    """End a task, also one that was done: whoever canceled it does not want what came of it.

    :raises NotFoundError: the account has none of this id.
    """
    row = _find(session, account_id, task_id)
    runs.cancel_run(session, row.run_id, 'The task was canceled')
    row.is_canceled, row.updated_at = True, now()
    session.flush()
    session.expire_all()
    return _read(row)


def restart_task(session: Session, account_id: str, task_id: str) -> TuningTask:
    """Have a task that has ended worked on again, with the batch that it had. One that waits or is at work goes on.

    :raises NotFoundError: the account has none of this id.
    """
    lock_account(session, account_id)
    row = _find(session, account_id, task_id)
    if row.run.status == FINISHED:
        row.restarts += 1
        config = {name: value for name, value in row.run.config.items() if name != TASK}
        name = f'task-{task_id}-{row.restarts + 1}'
        row.run_id = _create_run(session, account_id, task_id, config, name)
    elif not runs.resume_run(session, row.run_id) and not row.is_canceled:
        return _read(row)
    row.is_canceled, row.updated_at = False, now()
    session.flush()
    session.expire_all()
    return _read(row)


def set_batch(session: Session, task_id: str, batch_id: str) -> None:
    """Note what a task learns from.

    :raises NotFoundError: there is no such task.
    """
    row = _get(session, task_id)
    row.batch_id, row.updated_at = batch_id, now()


def _create_run(session: Session, account_id: str, task_id: str, config: dict[str, Any], name: str) -> str:
    run, _ = runs.create_run(session, account_id, EXPERIMENT, name, {**config, TASK: task_id}, '', {})
    check_room(session, account_id, 1)
    return run.id


def _owned(account_id: str) -> Select[TuningTaskRow]:
    query = select(TuningTaskRow).join(RunRow, RunRow.id == TuningTaskRow.run_id)
    return query.where(TuningTaskRow.account_id == account_id)


def _find(session: Session, account_id: str, task_id: str) -> TuningTaskRow:
    row = session.scalar(_owned(account_id).where(TuningTaskRow.id == task_id))
    if row is None:
        raise NotFoundError(f'Task with ID `{task_id[:80]}` not found')
    return row


def _get(session: Session, task_id: str) -> TuningTaskRow:
    row = session.get(TuningTaskRow, task_id)
    if row is None:
        raise NotFoundError(f'Task with ID `{task_id[:80]}` not found')
    return row


def _has_status(status: str) -> ColumnElement[bool]:
    wanted = next((run_status for run_status, name in STATUSES.items() if name == status), None)
    if status == CANCELED:
        return or_(TuningTaskRow.is_canceled, RunRow.status == CANCELLED)
    return and_(not_(TuningTaskRow.is_canceled), RunRow.status == wanted)


def _read_all(rows: Sequence[TuningTaskRow]) -> list[TuningTask]:
    return [_read(row) for row in rows]


def _read(row: TuningTaskRow) -> TuningTask:
    run = row.run
    status = CANCELED if row.is_canceled else STATUSES[run.status]
    times: list[datetime | None] = [row.updated_at, run.started_at, run.finished_at]
    return TuningTask(
        id=row.id,
        account_id=row.account_id,
        method=row.method,
        status=status,
        batch_id=row.batch_id,
        idempotency_key=row.idempotency_key,
        metadata=row.meta,
        created_at=row.created_at,
        updated_at=max(time for time in times if time is not None),
        run_id=run.id,
        run_name=run.name,
        details=run.details,
        artifact_id=run.artifact_id if run.status == FINISHED else None,
        progress=run.progress,
        metrics=run.metrics,
    )
