"""Artifacts: who may read one, and where it lies."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from finetuner.excepts import ArtifactNotFoundError, RunFailedError, RunInProgressError
from registry.models import ArtifactRow, ExperimentRow, RunRow
from registry.records import CANCELLED, FAILED, ArtifactRecord


def get_artifact(session: Session, account_id: str | None, artifact_id: str) -> ArtifactRecord:
    """The artifact of this id, if it is public or the account's. An account of None sees the public ones.

    :raises ArtifactNotFoundError: there is none that the account may read.
    :raises RunInProgressError: its run has not finished.
    :raises RunFailedError: its run has failed.
    """
    row = session.get(ArtifactRow, str(artifact_id))
    if row is not None and (row.public or row.account_id == account_id):
        return ArtifactRecord(
            id=row.id,
            account_id=row.account_id,
            run_id=row.run_id,
            name=row.run.name,
            size=row.size,
            sha256=row.sha256,
            public=row.public,
            created_at=row.created_at,
            key=row.key,
        )
    if row is None:
        _explain(session, account_id, str(artifact_id))
    raise ArtifactNotFoundError(
        f'There is no artifact {str(artifact_id)[:80]!r} that you may read: finetuner.list_runs() tells their ids'
    )


def _explain(session: Session, account_id: str | None, artifact_id: str) -> None:
    query = select(RunRow).join(RunRow.experiment).where(RunRow.artifact_id == artifact_id)
    run = session.scalar(query.where(ExperimentRow.account_id == account_id))
    if run is None:
        return
    if run.status == FAILED:
        raise RunFailedError(f'The run {run.name!r} left no artifact, it failed: {run.details}')
    if run.status == CANCELLED:
        raise RunFailedError(f'The run {run.name!r} left no artifact, it was cancelled: {run.details}')
    raise RunInProgressError(f'The run {run.name!r} has no artifact yet, it is {run.status}')
