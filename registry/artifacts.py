"""Artifacts: who may read one, and where it lies."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from finetuner.excepts import (
    ArtifactError,
    ArtifactNotFoundError,
    NotFoundError,
    RegistryError,
    RunFailedError,
    RunInProgressError,
)
from registry.database import read_page
from registry.models import ArtifactRow, ExperimentRow, RunRow
from registry.names import ID, shorten
from registry.promotions import aliases_of, get_promotion
from registry.records import CANCELLED, FAILED, ArtifactRecord, Page
from registry.runs import get_run


def get_artifact(session: Session, account_id: str | None, artifact_id: str) -> ArtifactRecord:
    """The artifact of this id, if it is public or the account's. An account of None sees the public ones.

    :raises ArtifactNotFoundError: there is none that the account may read.
    :raises RunInProgressError: its run has not finished.
    :raises RunFailedError: its run has failed.
    """
    row = session.get(ArtifactRow, str(artifact_id))
    if row is not None and (row.public or row.account_id == account_id):
        aliases = aliases_of(session, [row.id]) if row.account_id == account_id else {}
        return _record(row, aliases.get(row.id, ()))
    if row is None:
        _explain(session, account_id, str(artifact_id))
    raise _not_there(artifact_id)


def find_artifact(session: Session, account_id: str | None, reference: str) -> ArtifactRecord:
    """The artifact that a reference names: an id, 'experiment/run' or 'name@stage'. The last two are the account's.

    :raises ArtifactError: there is none that the account may read.
    :raises RunInProgressError: its run has not finished.
    :raises RunFailedError: its run has failed.
    """
    if not isinstance(reference, str) or ID.fullmatch(reference):
        return get_artifact(session, account_id, reference)
    experiment_name, slash, run_name = reference.partition('/')
    if account_id is None or not (slash or '@' in reference):
        raise _not_there(reference)
    try:
        if slash:
            artifact_id = get_run(session, account_id, experiment_name, run_name).artifact_id
        else:
            artifact_id = get_promotion(session, account_id, reference).artifact_id
    except NotFoundError as error:
        raise ArtifactNotFoundError(str(error)) from error
    except RegistryError as error:
        raise ArtifactError(str(error)) from error
    return get_artifact(session, account_id, artifact_id)


def list_artifacts(session: Session, account_id: str, page: int, size: int) -> Page[ArtifactRecord]:
    """One page of the account's artifacts, the newest first."""
    query = select(ArtifactRow).where(ArtifactRow.account_id == account_id)
    query = query.order_by(ArtifactRow.created_at.desc(), ArtifactRow.id.desc())
    rows, total = read_page(session, query, page, size)
    aliases = aliases_of(session, [row.id for (row,) in rows])
    return Page([_record(row, aliases.get(row.id, ())) for (row,) in rows], total, page, size)


def _record(row: ArtifactRow, aliases: Iterable[str]) -> ArtifactRecord:
    return ArtifactRecord(
        id=row.id,
        account_id=row.account_id,
        run_id=row.run_id,
        name=row.run.name,
        experiment_name=row.run.experiment.name,
        size=row.size,
        sha256=row.sha256,
        public=row.public,
        created_at=row.created_at,
        key=row.key,
        aliases=tuple(aliases),
    )


def _not_there(reference: object) -> ArtifactError:
    return ArtifactNotFoundError(
        f'There is no artifact {shorten(str(reference))} that you may read: the list of your runs '
        '(finetuner.list_runs(), GET /api/v1/runs) tells their ids'
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
