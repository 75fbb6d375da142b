"""The queue: which run is next, who has it, and what becomes of it when its worker is lost.

Who takes a run gets a lease, made anew each time. All that a worker does names it, so that one whose run was given to
another can do nothing to it. A lease ends when its holder gives it back, and when the run ends or waits again. While
there is one, nobody else gets the run, also if it was cancelled and resumed meanwhile: its worker may still be ending.

The order: the higher priority first; then the account with the fewest runs at work; then the oldest. Accounts at their
`max_runs`, and runs that crashed a moment ago, are passed over. So are runs that do not fit into what is free, up to
`PATIENCE`: after that, what such a run lacks is kept for it, and runs behind it that need some of it wait too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, and_, func, or_, select, text, update
from sqlalchemy.orm import Session

from registry.database import PIECE, pieces
from registry.models import AccountRow, ExperimentRow, RunRow, now
from registry.names import new_id
from registry.plain import clean
from registry.records import CREATED, FAILED, STARTED

PATIENCE = timedelta(minutes=5)
"""How long runs that fit pass by one that does not."""
CHUNK = 32
# any number that no other program on the same PostgreSQL database locks
CLAIM_LOCK = 0x71_75_65_75
SCHEDULING = ('priority', 'cpus', 'gpus', 'memory_limit', 'max_retries')
"""What of a run's config tells how it is worked on, not what comes of it."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a machine has, or a run needs.

    :param slots: runs without a GPU.
    :param gpus: whole ones.
    :param cpus: cores.
    """

    slots: int = 0
    gpus: int = 0
    cpus: float = 0.0

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.slots - other.slots, self.gpus - other.gpus, self.cpus - other.cpus)

    def lacks(self, needed: Resources) -> set[str]:
        """The names of what there is not enough of."""
        return {name for name in self.__slots__ if getattr(needed, name) > max(getattr(self, name), 0)}


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine has in all, and what of it is free."""

    total: Resources
    free: Resources


@dataclass(frozen=True, slots=True)
class Lease:
    """Who has a run, as of the moment of reading.

    :param id: None of a worker of an earlier version.
    :param status: of the run.
    """

    run_id: str
    id: str | None
    status: str
    worker: str | None
    heartbeat_at: datetime | None
    started_at: datetime | None = None

    @property
    def is_silent(self) -> bool:
        """Whether nobody has given a sign of life since the run was claimed."""
        return self.heartbeat_at == self.started_at


def needed(config: dict[str, Any], machines: Collection[Machine]) -> Resources:
    """What a run needs. Without `gpus`, one that asks for 'cuda' gets a GPU where there are any, and else a slot."""
    gpus = config.get('gpus')
    if gpus is None:
        wanted = str(config.get('device') or 'cuda').startswith('cuda')
        gpus = int(wanted and any(machine.total.gpus for machine in machines))
    return Resources(slots=0 if gpus else 1, gpus=int(gpus), cpus=float(config.get('cpus') or 0))


def is_empty(session: Session) -> bool:
    """Whether no run waits."""
    return session.scalar(select(RunRow.id).where(RunRow.status == CREATED).limit(1)) is None


def claim_run(session: Session, worker: str, machines: Collection[Machine], exclude: Iterable[str]) -> str | None:
    """CREATED → STARTED of the run that is next and fits, with a new lease. Returns its id."""
    if session.get_bind().dialect.name == 'postgresql':
        # one after the other: the counts of runs at work hold until the commit
        session.execute(text('SELECT pg_advisory_xact_lock(:number)'), {'number': CLAIM_LOCK})
    time, kept = now(), set[str]()
    for row in _eligible(session, time, exclude):
        needs = needed(row.config, machines)
        if all(machine.total.lacks(needs) for machine in machines):
            continue
        lacking = [machine.free.lacks(needs) for machine in machines if not machine.total.lacks(needs)]
        if all(lacking):
            if time - row.created_at > PATIENCE:
                kept |= set().union(*lacking)
        elif not any(getattr(needs, name) for name in kept) and _take(session, row.id, worker):
            return str(row.id)
    return None


def _eligible(session: Session, time: datetime, exclude: Iterable[str]) -> Iterator[Row[Any]]:
    query = _waiting().add_columns(RunRow.config)
    query = query.where(
        RunRow.lease.is_(None),
        or_(RunRow.not_before.is_(None), RunRow.not_before <= time),
        RunRow.id.not_in(list(exclude)),
    )
    found = query.subquery()
    query = (
        select(found).where(or_(found.c.max_runs.is_(None), found.c.busy < found.c.max_runs)).order_by(*_order(found))
    )
    with session.execute(query.execution_options(yield_per=CHUNK)) as rows:
        yield from rows


def _take(session: Session, run_id: str, worker: str) -> bool:
    # somebody may be cancelling or deleting it: that is not waited for
    free = select(RunRow.id).where(RunRow.id == run_id, RunRow.status == CREATED, RunRow.lease.is_(None))
    if session.scalar(free.with_for_update(skip_locked=True)) is None:
        return False
    return start(session, run_id, worker, new_id())


def start(session: Session, run_id: str, worker: str, lease: str) -> bool:
    """CREATED → STARTED of this very run, if nobody has it."""
    time = now()
    values = {
        'status': STARTED,
        'details': 'Run is being executed',
        'worker': worker,
        'lease': lease,
        'attempts': RunRow.attempts + 1,
        'not_before': None,
        'started_at': time,
        'heartbeat_at': time,
    }
    return _change(session, [RunRow.id == run_id, RunRow.status == CREATED, RunRow.lease.is_(None)], values)


def held(session: Session) -> list[Lease]:
    """Every run that somebody works on, or that waits for its last worker to end."""
    query = select(RunRow.id, RunRow.lease, RunRow.status, RunRow.worker, RunRow.heartbeat_at, RunRow.started_at)
    waits = and_(RunRow.status == CREATED, RunRow.lease.is_not(None))
    return [Lease(*row) for row in session.execute(query.where(or_(RunRow.status == STARTED, waits)))]


def statuses(session: Session, run_ids: Collection[str]) -> dict[str, str]:
    """The statuses of those of the runs that there are."""
    found: dict[str, str] = {}
    for ids in pieces(run_ids):
        query = select(RunRow.id, RunRow.status).where(RunRow.id.in_(ids))
        found |= {row.id: row.status for row in session.execute(query)}
    return found


def is_held(session: Session, run_id: str, lease: str) -> bool:
    """Whether the run is at work under this lease."""
    query = select(RunRow.id).where(RunRow.id == run_id, RunRow.lease == lease, RunRow.status == STARTED)
    return session.scalar(query) is not None


def retry_run(
    session: Session,
    run_id: str,
    lease: str | None,
    reason: str,
    *,
    max_retries: int,
    delay: float,
    counts: bool = True,
    heartbeat_at: datetime | None = None,
) -> str | None:
    """STARTED → CREATED, or → FAILED after the last attempt. Returns what it is now; None if the lease is another's.

    :param max_retries: where the run's config says nothing.
    :param delay: seconds until the second attempt, twice as many until the third, and so on.
    :param counts: False if it was not the run's fault.
    :param heartbeat_at: the last sign of life that is known: a later one saves the worker.
    """
    held = [RunRow.id == run_id, RunRow.status == STARTED, RunRow.lease == lease]
    if heartbeat_at is not None:
        held.append(RunRow.heartbeat_at == heartbeat_at)
    row = session.execute(select(RunRow.attempts, RunRow.config).where(*held).with_for_update()).one_or_none()
    if row is None:
        return None
    given = row.config.get('max_retries')
    allowed = 1 + int(max_retries if given is None else given)
    reason = clean(reason)
    if not counts:
        values = {'status': CREATED, 'details': reason, 'attempts': max(row.attempts - 1, 0)}
    elif row.attempts < allowed:
        details = f'{reason}. Attempt {row.attempts + 1} of {allowed} goes on from the last checkpoint'
        wait = timedelta(seconds=delay * 2 ** min(row.attempts - 1, 10))
        values = {'status': CREATED, 'details': details, 'not_before': now() + wait}
    else:
        attempts = f' (attempt {row.attempts} of {allowed})' if allowed > 1 else ''
        values = {'status': FAILED, 'details': reason + attempts, 'finished_at': now()}
    _change(session, held, values | {'lease': None})
    return str(values['status'])


def release(session: Session, run_id: str, lease: str | None, heartbeat_at: datetime | None = None) -> None:
    """Give back the lease of a run that has ended, or waits again."""
    held = [RunRow.id == run_id, RunRow.lease == lease, RunRow.status != STARTED]
    if heartbeat_at is not None:
        held.append(RunRow.heartbeat_at == heartbeat_at)
    _change(session, held, {'lease': None})


def positions(session: Session, run_ids: Collection[str]) -> dict[str, int]:
    """Where waiting runs are in the queue of all accounts, from 1."""
    if not run_ids:
        return {}
    found = _waiting().subquery()
    ranked = select(found.c.id, func.row_number().over(order_by=_order(found)).label('position')).subquery()
    wanted, query = set(run_ids), select(ranked)
    if len(wanted) <= PIECE:
        query = query.where(ranked.c.id.in_(wanted))
    return {row.id: row.position for row in session.execute(query) if row.id in wanted}


def _waiting() -> Select[Any]:
    """The CREATED runs, each with how many its account has at work (`busy`), and will have before it (`turn`)."""
    counts = (
        select(ExperimentRow.account_id, func.count().label('busy'))
        .join(RunRow, and_(RunRow.experiment_id == ExperimentRow.id, RunRow.status == STARTED))
        .group_by(ExperimentRow.account_id)
        .subquery()
    )
    busy = func.coalesce(counts.c.busy, 0)
    own = func.row_number().over(
        partition_by=ExperimentRow.account_id, order_by=(RunRow.priority.desc(), RunRow.created_at, RunRow.id)
    )
    columns = (RunRow.id, RunRow.priority, RunRow.created_at, AccountRow.max_runs)
    return (
        select(*columns, busy.label('busy'), (busy + own).label('turn'))
        .join(ExperimentRow, RunRow.experiment_id == ExperimentRow.id)
        .join(AccountRow, AccountRow.id == ExperimentRow.account_id)
        .outerjoin(counts, counts.c.account_id == ExperimentRow.account_id)
        .where(RunRow.status == CREATED)
    )


def _order(waiting: Any) -> tuple[Any, ...]:
    return waiting.c.priority.desc(), waiting.c.turn, waiting.c.created_at, waiting.c.id


def _change(session: Session, conditions: list[Any], values: dict[str, Any]) -> bool:
    statement = update(RunRow).where(*conditions).values(values).returning(RunRow.id)
    return session.scalar(statement, execution_options={'synchronize_session': False}) is not None
