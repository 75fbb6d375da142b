"""Checkpoints that outlive the machine that wrote them: objects, of which a run has one, the latest."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from finetuner.excepts import RegistryError
from registry.models import CheckpointRow, RunRow
from registry.names import new_id
from registry.records import CheckpointRecord


def new_key(run_id: str) -> str:
    return f'checkpoints/{run_id}/{new_id()}.zip'


def replace_checkpoint(
    session: Session, run_id: str, lease: str, name: str, size: int, sha256: str, key: str
) -> list[str]:
    """Make this the checkpoint of a run, and return the keys of those that it replaces.

    :raises RegistryError: the lease is not (any more) that of the run.
    """
    held = (RunRow.id == run_id, RunRow.lease == lease)
    if session.scalar(select(RunRow.id).where(*held).with_for_update()) is None:
        raise RegistryError('The checkpoint comes too late: another worker has the run, or it has ended')
    replaced = delete_checkpoints(session, [run_id])
    session.add(CheckpointRow(run_id=run_id, name=name, size=size, sha256=sha256, key=key))
    return replaced


def find_checkpoint(session: Session, run_id: str) -> CheckpointRecord | None:
    row = session.scalar(select(CheckpointRow).where(CheckpointRow.run_id == run_id))
    return None if row is None else CheckpointRecord(row.name, row.size, row.sha256, row.key)


def delete_checkpoints(session: Session, run_ids: Iterable[str]) -> list[str]:
    """Delete the rows of the runs' checkpoints, and return the keys of their objects."""
    of_runs = CheckpointRow.run_id.in_(list(run_ids))
    keys = list(session.scalars(select(CheckpointRow.key).where(of_runs)))
    session.execute(delete(CheckpointRow).where(of_runs))
    return keys
