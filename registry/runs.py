"""Runs: CREATED → STARTED → FINISHED, FAILED or CANCELLED; the last two can become CREATED again.

Every step is one UPDATE that names the status it leaves: it is made once, whoever else tries. A worker's steps name
its lease too, see `registry.queue`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from finetuner.excepts import NotFoundError, RegistryError
from registry.database import find_or_insert, read_page
from registry.experiments import find_or_make_row, find_row
from registry.models import ArtifactRow, ExperimentRow, RunRow, TuningTaskRow, now
from registry.names import known
from registry.plain import clean, plain
from registry.queue import SCHEDULING, positions
from registry.records import CANCELLED, CREATED, FAILED, FINISHED, STARTED, Page, RunRecord


def create_run(
    session: Session,
    account_id: str,
    experiment_name: str,
    run_name: str,
    config: dict[str, Any],
    description: str,
    datasets: dict[str, Any],
    defaults: dict[str, Any] | None = None,
    priority: int = 0,
) -> tuple[RunRecord, bool]:
    """The run of this name, and whether it is new.

    :raises RegistryError: it is there with another configuration, or its data sets have changed since.
    """
    experiment = find_or_make_row(session, account_id, experiment_name)
    config = plain(config, 'config')
    row, is_new = find_or_insert(
        session,
        select(RunRow).where(RunRow.experiment_id == experiment.id, RunRow.name == run_name),
        lambda: RunRow(
            experiment=experiment,
            name=run_name,
            status=CREATED,
            details='Run submitted and awaits execution',
            config=config,
            datasets=datasets,
            description=clean(description),
            priority=priority,
        ),
    )
    before, asked = _identity(row.config), _identity(config)
    if _without(before, defaults or {}) != _without(asked, defaults or {}):
        raise RegistryError(
            f'The run {run_name!r} of the experiment {experiment_name!r} is there already, with another configuration '
            f'({_difference(before, asked)}): choose another name'
        )
    changed = [name for name in datasets if row.datasets.get(name, {}).get('digest') != datasets[name]['digest']]
    if changed:
        raise RegistryError(
            f'The run {run_name!r} of the experiment {experiment_name!r} is there already, and since then the data has '
            f'changed ({", ".join(changed)}): choose another name'
        )
    return _read(session, row), is_new


def get_run(session: Session, account_id: str, experiment_name: str, run_name: str) -> RunRecord:
    """
    :raises NotFoundError: there is none of this name.
    """
    return _read(session, find_run_row(session, account_id, experiment_name, run_name))


def find_run_row(session: Session, account_id: str, experiment_name: str, run_name: str) -> RunRow:
    """
    :raises RegistryError: there is none of this name.
    """
    owned = (ExperimentRow.account_id == account_id, ExperimentRow.name == experiment_name)
    query = select(RunRow).join(RunRow.experiment).where(*owned)
    row = session.scalar(query.where(RunRow.name == run_name))
    if row is not None:
        return row
    find_row(session, account_id, experiment_name)
    owner = select(ExperimentRow.name).join(RunRow, RunRow.experiment_id == ExperimentRow.id)
    elsewhere = session.scalars(owner.where(ExperimentRow.account_id == account_id, RunRow.name == run_name)).all()
    if elsewhere:
        raise NotFoundError(
            f'There is no run {run_name!r} in the experiment {experiment_name!r}: it is in {" and ".join(elsewhere)}'
        )
    names = session.scalars(select(RunRow.name).join(RunRow.experiment).where(*owned))
    raise NotFoundError(
        f'There is no run {str(run_name)[:200]!r} in the experiment {experiment_name!r}: {known(str(run_name), names)}'
    )


def get_run_row(session: Session, run_id: str) -> RunRow:
    """
    :raises NotFoundError: there is none of this id.
    """
    row = session.get(RunRow, run_id)
    if row is None:
        raise NotFoundError(f'There is no run of the id {str(run_id)[:80]!r}')
    return row


def get_run_by_id(session: Session, run_id: str) -> RunRecord:
    return _read(session, get_run_row(session, run_id))


def list_runs(session: Session, account_id: str, experiment_name: str | None, page: int, size: int) -> Page[RunRecord]:
    """One page of the account's runs, the newest first, without their examples."""
    owned = [ExperimentRow.account_id == account_id]
    if experiment_name is not None:
        owned.append(ExperimentRow.name == experiment_name)
        find_row(session, account_id, experiment_name)
    query = select(RunRow).join(RunRow.experiment).where(*owned).order_by(RunRow.created_at.desc(), RunRow.id.desc())
    rows, total = read_page(session, query, page, size)
    return Page(read_all(session, [row for (row,) in rows]), total, page, size)


def find_rows(session: Session, account_id: str, experiment_name: str | None) -> list[RunRow]:
    """All runs of an experiment, or of the account.

    :raises RegistryError: there is no such experiment.
    """
    query = select(RunRow).join(RunRow.experiment).where(ExperimentRow.account_id == account_id)
    if experiment_name is not None:
        query = query.where(RunRow.experiment_id == find_row(session, account_id, experiment_name).id)
    return list(session.scalars(query))


def unfinished_runs(session: Session) -> list[RunRecord]:
    """All runs that are CREATED or STARTED, the oldest first."""
    query = select(RunRow).where(RunRow.status.in_([CREATED, STARTED])).order_by(RunRow.created_at, RunRow.id)
    return read_all(session, session.scalars(query).all())


def heartbeat(
    session: Session, run_id: str, progress: dict[str, Any] | None, lease: str | None = None, worker: str | None = None
) -> bool:
    """Note that the worker lives. False if the run is not STARTED (any more), or another's.

    It is noted of a run that was cancelled as well: its worker has yet to end.
    """
    values: dict[str, Any] = {'heartbeat_at': now()}
    if progress is not None:
        values['progress'] = plain(progress, 'progress', lossy=True)
    if worker is not None:
        values['worker'] = worker
    if _step(session, run_id, [STARTED], lease, **values):
        return True
    if lease is not None:
        _step(session, run_id, [CREATED, CANCELLED], lease, heartbeat_at=now())
    return False


def finish_run(
    session: Session,
    run_id: str,
    metrics: dict[str, Any],
    examples: dict[str, Any],
    sha256: str,
    size: int,
    key: str,
    lease: str | None = None,
    details: str = 'Run finished',
) -> None:
    """STARTED → FINISHED, with its artifact.

    :raises RegistryError: the run is not STARTED (any more), or another's.
    """
    values = {'details': clean(details), 'metrics': metrics, 'examples': examples, 'finished_at': now(), 'lease': None}
    finished = _step(session, run_id, [STARTED], lease, status=FINISHED, **values)
    row = get_run_row(session, run_id)
    if not finished:
        raise not_started(_record(row))
    session.add(
        ArtifactRow(
            id=row.artifact_id,
            account_id=row.experiment.account_id,
            run_id=run_id,
            size=size,
            sha256=sha256,
            public=row.config.get('public') is True,
            key=key,
        )
    )
    session.flush()


def fail_run(session: Session, run_id: str, reason: str, lease: str | None = None) -> bool:
    """CREATED or STARTED → FAILED. False, and the first reason stays, if the run has ended already or is another's."""
    values = {'details': clean(reason), 'finished_at': now(), 'lease': None}
    return _step(session, run_id, [CREATED, STARTED], lease, status=FAILED, **values)


def cancel_run(session: Session, run_id: str, reason: str) -> bool:
    """CREATED or STARTED → CANCELLED. False if the run has ended already."""
    return _step(session, run_id, [CREATED, STARTED], status=CANCELLED, details=clean(reason), finished_at=now())


def resume_run(session: Session, run_id: str) -> bool:
    """FAILED or CANCELLED → CREATED, with all its attempts. False if the run is neither.

    It waits for the lease of a worker that has yet to end.
    """
    values: dict[str, Any] = {
        'details': 'Run submitted again and awaits execution',
        'progress': {},
        'finished_at': None,
        'attempts': 0,
        'not_before': None,
    }
    resumed = _step(session, run_id, [FAILED, CANCELLED], status=CREATED, **values)
    if resumed:  # what its task asks for is wanted again
        task = update(TuningTaskRow).where(TuningTaskRow.run_id == run_id).values(is_canceled=False, updated_at=now())
        session.execute(task, execution_options={'synchronize_session': False})
    return resumed


def not_started(run: RunRecord) -> RegistryError:
    if run.status == STARTED:
        return RegistryError(f'The run {run.name!r} cannot be finished by this worker: another one has it')
    return RegistryError(f'The run {run.name!r} cannot be finished, it is {run.status}: {run.details}')


def _step(session: Session, run_id: str, statuses: list[str], holder: str | None = None, **values: Any) -> bool:
    """Update the run if its status is one of `statuses`, and its lease is `holder` if that is given; whether it was."""
    conditions = [RunRow.id == run_id, RunRow.status.in_(statuses)]
    if holder is not None:
        conditions.append(RunRow.lease == holder)
    statement = update(RunRow).where(*conditions).returning(RunRow.id)
    # the session holds no rows yet that the statement could leave stale
    stepped = session.scalar(statement.values(values), execution_options={'synchronize_session': False})
    if stepped is None:
        get_run_row(session, run_id)
    return stepped is not None


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs of one name the same."""
    return {name: value for name, value in config.items() if name not in SCHEDULING}


def _without(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration is no default: an argument that is new leaves runs of before what they were."""
    return {name: value for name, value in config.items() if name not in defaults or value != defaults[name]}


def _difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    names = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    return f'other values of {", ".join(names[:5])}{", …" if len(names) > 5 else ""}'


def _read(session: Session, row: RunRow) -> RunRecord:
    found = positions(session, [row.id]) if row.status == CREATED else {}
    return _record(row, found.get(row.id))


def read_all(session: Session, rows: Sequence[RunRow]) -> list[RunRecord]:
    """The runs of these rows, without their examples."""
    found = positions(session, [row.id for row in rows if row.status == CREATED])
    return [_record(row, found.get(row.id), examples=False) for row in rows]


def _record(row: RunRow, queue_position: int | None = None, examples: bool = True) -> RunRecord:
    return RunRecord(
        id=row.id,
        name=row.name,
        experiment_name=row.experiment.name,
        account_id=row.experiment.account_id,
        status=row.status,
        details=row.details,
        config=row.config,
        artifact_id=row.artifact_id,
        description=row.description,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        heartbeat_at=row.heartbeat_at,
        worker=row.worker,
        progress=row.progress,
        metrics=row.metrics,
        examples=row.examples if examples else None,
        priority=row.priority,
        attempts=row.attempts,
        lease=row.lease,
        queue_position=queue_position,
    )
