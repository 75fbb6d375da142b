"""Experiments: groups of runs with a name, and what is deleted with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from finetuner.excepts import NotFoundError, RunInProgressError
from registry.checkpoints import delete_checkpoints
from registry.database import find_or_insert, read_page
from registry.models import ArtifactRow, ExperimentRow, RunRow
from registry.names import known
from registry.plain import clean
from registry.promotions import forget
from registry.records import STARTED, ExperimentRecord, Page


@dataclass
class Deleted:
    """What is gone from the database, and what is to go from the object store and the disk when that is committed.

    :param experiments: as they were.
    :param runs: the ids of runs, which have a directory each.
    :param keys: of objects.
    """

    experiments: list[ExperimentRecord] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


def create_experiment(session: Session, account_id: str, name: str, description: str) -> ExperimentRecord:
    """The experiment of this name, made if there is none. One that is there keeps its description."""
    row = find_or_make_row(session, account_id, name, description)
    return _record(row, _count(session, row))


def get_experiment(session: Session, account_id: str, name: str) -> ExperimentRecord:
    """:raises RegistryError: there is none of this name."""
    row = find_row(session, account_id, name)
    return _record(row, _count(session, row))


def list_experiments(session: Session, account_id: str, page: int, size: int) -> Page[ExperimentRecord]:
    """One page of the account's experiments, the newest first."""
    counts = select(func.count()).where(RunRow.experiment_id == ExperimentRow.id).correlate(ExperimentRow)
    query = select(ExperimentRow, counts.scalar_subquery()).where(ExperimentRow.account_id == account_id)
    query = query.order_by(ExperimentRow.created_at.desc(), ExperimentRow.id.desc())
    rows, total = read_page(session, query, page, size)
    return Page([_record(row, count) for row, count in rows], total, page, size)


def delete_experiments(session: Session, account_id: str, names: Iterable[str] | None) -> Deleted:
    """Delete experiments with all their runs; None is all of the account. The account is locked.

    :raises RegistryError: there is none of a name, or an alias names an artifact of one.
    :raises RunInProgressError: one of their runs is at work.
    """
    query = select(ExperimentRow).where(ExperimentRow.account_id == account_id)
    if names is not None:
        query = query.where(ExperimentRow.id.in_([find_row(session, account_id, name).id for name in names]))
    # so that no run is added to them
    rows = list(session.scalars(query.order_by(ExperimentRow.created_at, ExperimentRow.id).with_for_update()))
    ids = [row.id for row in rows]
    found = [_record(row, _count(session, row)) for row in rows]
    deleted = delete_runs(session, list(session.scalars(select(RunRow).where(RunRow.experiment_id.in_(ids)))))
    session.execute(delete(ExperimentRow).where(ExperimentRow.id.in_(ids)))
    return Deleted(found, deleted.runs, deleted.keys)


def delete_runs(session: Session, rows: list[RunRow]) -> Deleted:
    """Delete runs, with their artifacts, logs and checkpoints. Their account is locked.

    :raises RegistryError: an alias names one of the artifacts.
    :raises RunInProgressError: one of them is at work.
    """
    # a run that waits is taken by one UPDATE: it is gone then, or it is at work and stays
    locked = select(RunRow).where(RunRow.id.in_([row.id for row in rows])).order_by(RunRow.id)
    rows = list(session.scalars(locked.with_for_update(of=RunRow), execution_options={'populate_existing': True}))
    for row in rows:
        if row.status == STARTED:
            raise RunInProgressError(
                f'The run {row.name!r} of the experiment {row.experiment.name!r} is at work: cancel it first'
            )
    ids = [row.id for row in rows]
    artifacts = session.execute(select(ArtifactRow.id, ArtifactRow.key).where(ArtifactRow.run_id.in_(ids))).all()
    forget(session, [artifact_id for artifact_id, _ in artifacts])
    keys = [key for _, key in artifacts]
    keys += delete_checkpoints(session, ids)
    session.execute(delete(ArtifactRow).where(ArtifactRow.run_id.in_(ids)))
    session.execute(delete(RunRow).where(RunRow.id.in_(ids)))
    return Deleted(runs=ids, keys=keys)


def find_or_make_row(session: Session, account_id: str, name: str, description: str = '') -> ExperimentRow:
    """The row of this name, inserted if there is none, also if others do so at once. Nobody deletes it meanwhile."""
    query = select(ExperimentRow).where(ExperimentRow.account_id == account_id, ExperimentRow.name == name)
    row, _ = find_or_insert(
        session,
        query.with_for_update(read=True, key_share=True),
        lambda: ExperimentRow(account_id=account_id, name=name, description=clean(description)),
    )
    return row


def find_row(session: Session, account_id: str, name: str) -> ExperimentRow:
    """:raises NotFoundError: there is none of this name."""
    owned = ExperimentRow.account_id == account_id
    row = session.scalar(select(ExperimentRow).where(owned, ExperimentRow.name == name))
    if row is not None:
        return row
    names = session.scalars(select(ExperimentRow.name).where(owned))
    raise NotFoundError(f'There is no experiment {str(name)[:200]!r}: {known(str(name), names)}')


def _count(session: Session, row: ExperimentRow) -> int:
    return session.scalar(select(func.count()).where(RunRow.experiment_id == row.id)) or 0


def _record(row: ExperimentRow, runs: int) -> ExperimentRecord:
    return ExperimentRecord(id=row.id, name=row.name, description=row.description, created_at=row.created_at, runs=runs)
