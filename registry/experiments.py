"""Experiments: groups of runs with a name, and what is deleted with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from finetuner.excepts import NotFoundError, RunInProgressError
from registry.checkpoints import delete_checkpoints
from registry.database import find_or_insert, pieces, read_page
from registry.models import ArtifactRow, ExperimentRow, RunRow
from registry.names import known
from registry.plain import clean
from registry.promotions import forget
from registry.records import STARTED, ExperimentRecord, Page

UNSYNCHRONISED = {'synchronize_session': False}
"""For a deletion after which the session has no more use for the rows."""


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
    # so that no run is added to them
    query = select(ExperimentRow).where(ExperimentRow.account_id == account_id).with_for_update()
    if names is None:
        rows = list(session.scalars(query))
    else:
        names = list(dict.fromkeys(clean(name) for name in names))
        rows = [row for some in pieces(names) for row in session.scalars(query.where(ExperimentRow.name.in_(some)))]
        there = {row.name for row in rows}
        for name in names:
            if name not in there:
                raise _not_there(session, account_id, name)
    rows.sort(key=lambda row: (row.created_at, row.id))
    counts: Counter[str] = Counter()
    run_ids: list[str] = []
    for ids in pieces(row.id for row in rows):
        for run_id, experiment_id in session.execute(
            select(RunRow.id, RunRow.experiment_id).where(RunRow.experiment_id.in_(ids))
        ):
            run_ids.append(run_id)
            counts[experiment_id] += 1
    found = [_record(row, counts[row.id]) for row in rows]
    deleted = delete_runs(session, run_ids)
    for ids in pieces(row.id for row in rows):
        session.execute(delete(ExperimentRow).where(ExperimentRow.id.in_(ids)), execution_options=UNSYNCHRONISED)
    return Deleted(found, deleted.runs, deleted.keys)


def delete_runs(session: Session, run_ids: Iterable[str]) -> Deleted:
    """Delete runs, with their artifacts, logs and checkpoints. Their account is locked.

    :raises RegistryError: an alias names one of the artifacts.
    :raises RunInProgressError: one of them is at work.
    """
    # a run that waits is taken by one UPDATE: it is gone then, or it is at work and stays
    deleted = Deleted()
    locked = select(RunRow.id, RunRow.status).order_by(RunRow.id).with_for_update()
    for some in pieces(sorted(run_ids)):
        for run_id, status in session.execute(locked.where(RunRow.id.in_(some))):
            if status == STARTED:
                raise _at_work(session, run_id)
            deleted.runs.append(run_id)
    for ids in pieces(deleted.runs):
        of_runs = ArtifactRow.run_id.in_(ids)
        artifacts = session.execute(select(ArtifactRow.id, ArtifactRow.key).where(of_runs)).all()
        forget(session, [artifact_id for artifact_id, _ in artifacts])
        deleted.keys += [key for _, key in artifacts]
        deleted.keys += delete_checkpoints(session, ids)
        session.execute(delete(ArtifactRow).where(of_runs), execution_options=UNSYNCHRONISED)
        session.execute(delete(RunRow).where(RunRow.id.in_(ids)), execution_options=UNSYNCHRONISED)
    return deleted


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
    if row is None:
        raise _not_there(session, account_id, name)
    return row


def _not_there(session: Session, account_id: str, name: str) -> NotFoundError:
    names = session.scalars(select(ExperimentRow.name).where(ExperimentRow.account_id == account_id))
    return NotFoundError(f'There is no experiment {str(name)[:200]!r}: {known(str(name), names)}')


def _at_work(session: Session, run_id: str) -> RunInProgressError:
    row = session.get_one(RunRow, run_id)
    return RunInProgressError(
        f'The run {row.name!r} of the experiment {row.experiment.name!r} is at work: cancel it first'
    )


def _count(session: Session, row: ExperimentRow) -> int:
    return session.scalar(select(func.count()).where(RunRow.experiment_id == row.id)) or 0


def _record(row: ExperimentRow, runs: int) -> ExperimentRecord:
    return ExperimentRecord(id=row.id, name=row.name, description=row.description, created_at=row.created_at, runs=runs)
