"""Click sessions and their events: written once, read batch by batch, deleted by user or by age."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Subquery, Text, cast, delete, exists, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from finetuner.excepts import NotFoundError
from registry.click_batches import lock_collecting
from registry.click_records import ClickEvent, ClickSession, SearchResult, SessionsOfBatch
from registry.database import find_or_insert
from registry.models import ClickBatchRow, ClickEventRow, ClickSessionRow
from registry.names import new_id

INSERT: dict[str, Any] = {'sqlite': sqlite.insert, 'postgresql': postgresql.insert}

MAX_PAGE_BYTES = 8 << 20
"""Of the sessions that are held at once, as the database has them: objects of Python take some times as much."""
ROW_BYTES = 500
"""Of a session or an event without what can be long in it."""


def insert_session(session: Session, account_id: str, session_id: str, values: dict[str, Any]) -> bool:
    """Add a session to the batch that collects. False, and nothing changes, if there is one of this id."""
    query = select(ClickSessionRow).where(*_is(account_id, session_id))
    if session.scalar(query) is not None:
        return False
    batch = lock_collecting(session, account_id)
    number = batch.last_number + 1
    row = ClickSessionRow(account_id=account_id, session_id=session_id, batch_id=batch.id, number=number, **values)
    _, is_new = find_or_insert(session, query, lambda: row)
    if is_new:
        batch.last_number = number
    return is_new


def insert_events(session: Session, account_id: str, session_id: str, events: Sequence[dict[str, Any]]) -> int:
    """Add events, leave those that are there as they are, and return how many are new."""
    if not events:
        return 0
    rows = [
        {'id': new_id(), 'account_id': account_id, 'session_id': session_id, 'position': position, **event}
        for position, event in enumerate(events)
    ]
    # in one order, so that two that bring the same events wait for each other once, and never both ways
    rows.sort(key=lambda row: row['event_id'])
    insert = INSERT[session.get_bind().dialect.name](ClickEventRow)
    done = session.execute(insert.values(rows).on_conflict_do_nothing().returning(ClickEventRow.id))
    return len(done.all())


def mark_irrelevant(session: Session, account_id: str, session_id: str) -> None:
    """:raises NotFoundError: the account has no such session."""
    row = _find(session, account_id, session_id)
    session.execute(update(ClickSessionRow).where(ClickSessionRow.id == row.id).values(is_irrelevant=True))


def get_session(session: Session, account_id: str, session_id: str, events_limit: int) -> ClickSession:
    """:raises NotFoundError: the account has no such session."""
    row = _find(session, account_id, session_id)
    return _session(row, _events(session, account_id, [session_id], events_limit)[session_id])


def batch_sessions(
    session: Session, account_id: str, batch_id: str, after_number: int, limit: int, events_limit: int
) -> SessionsOfBatch:
    """The sessions of a batch that come after a number, as many as may be held at once, but one at least; none of a
    batch that there is not."""
    owned = ClickBatchRow.id == ClickSessionRow.batch_id, ClickBatchRow.account_id == account_id
    query = select(ClickSessionRow).join(ClickBatchRow, owned[0]).where(owned[1], ClickSessionRow.batch_id == batch_id)
    query = query.where(ClickSessionRow.number > after_number).order_by(ClickSessionRow.number)
    size = _size(ClickSessionRow.search_query, ClickSessionRow.search_results, ClickSessionRow.search_meta)
    sizes = session.execute(query.with_only_columns(ClickSessionRow.session_id, size).limit(limit)).tuples().all()
    rows = list(session.scalars(query.limit(_fitting(session, account_id, sizes, events_limit))))
    events = _events(session, account_id, [row.session_id for row in rows], events_limit)
    sessions = [_session(row, events[row.session_id]) for row in rows]
    return SessionsOfBatch(batch_id, sessions[-1].number if sessions else None, sessions)


def delete_of_user(session: Session, account_id: str, user_id: str) -> int:
    """Delete the sessions of a user of the client, with their events, and return how many sessions there were."""
    return _delete(session, ClickSessionRow.account_id == account_id, ClickSessionRow.user_id == user_id)


def delete_before(session: Session, account_id: str | None, time: datetime) -> int:
    """Delete older sessions with their events, and older events without a session; None is all accounts."""
    owned = [] if account_id is None else [ClickSessionRow.account_id == account_id]
    deleted = _delete(session, *owned, ClickSessionRow.created_at < time)
    lost = [ClickEventRow.created_at < time, ~_has_session()]
    if account_id is not None:
        lost.append(ClickEventRow.account_id == account_id)
    session.execute(delete(ClickEventRow).where(*lost), execution_options={'synchronize_session': False})
    return deleted


def _delete(session: Session, *chosen: ColumnElement[bool]) -> int:
    unsynchronised = {'synchronize_session': False}
    session.execute(delete(ClickEventRow).where(_has_session(*chosen)), execution_options=unsynchronised)
    done = session.execute(delete(ClickSessionRow).where(*chosen), execution_options=unsynchronised)
    return int(done.rowcount)  # type: ignore[attr-defined]


def _has_session(*chosen: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether an event belongs to one of the sessions."""
    return exists().where(
        ClickSessionRow.account_id == ClickEventRow.account_id,
        ClickSessionRow.session_id == ClickEventRow.session_id,
        *chosen,
    )


def _is(account_id: str, session_id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return ClickSessionRow.account_id == account_id, ClickSessionRow.session_id == session_id


def _find(session: Session, account_id: str, session_id: str) -> ClickSessionRow:
    row = session.scalar(select(ClickSessionRow).where(*_is(account_id, session_id)))
    if row is None:
        raise NotFoundError(f'Session with id={session_id[:255]} not found')
    return row


def _events(
    session: Session, account_id: str, session_ids: Sequence[str], limit: int
) -> defaultdict[str, list[ClickEvent]]:
    """The first events of each of the sessions, the oldest first."""
    inner = _numbered(account_id, session_ids)
    row = aliased(ClickEventRow, inner)
    found: defaultdict[str, list[ClickEvent]] = defaultdict(list)
    for event in session.scalars(select(row).where(inner.c.place <= limit).order_by(inner.c.place)):
        found[event.session_id].append(
            ClickEvent(event.event_id, event.object_id, event.event_type, event.created_at, event.meta)
        )
    return found


def _fitting(session: Session, account_id: str, sizes: Sequence[tuple[str, int]], events_limit: int) -> int:
    """How many of the sessions, whose ids and sizes without events are given, may be held at once; one at least."""
    inner = _numbered(account_id, [session_id for session_id, _ in sizes])
    query = select(inner.c.session_id, func.sum(_size(inner.c.meta))).where(inner.c.place <= events_limit)
    of_events: dict[str, int] = dict(session.execute(query.group_by(inner.c.session_id)).tuples().all())
    fitting, room = 0, MAX_PAGE_BYTES
    for session_id, size in sizes:
        room -= size + int(of_events.get(session_id, 0))
        if room < 0:
            break
        fitting += 1
    return max(fitting, 1)


def _numbered(account_id: str, session_ids: Sequence[str]) -> Subquery:
    """The events of the sessions, each with its `place` in its own one, the oldest first."""
    order = ClickEventRow.created_at, ClickEventRow.position, ClickEventRow.event_id
    place = func.row_number().over(partition_by=ClickEventRow.session_id, order_by=order).label('place')
    owned = ClickEventRow.account_id == account_id, ClickEventRow.session_id.in_(session_ids)
    return select(ClickEventRow, place).where(*owned).subquery()


def _size(*columns: Any) -> ColumnElement[int]:
    """About how many bytes a row takes, by what can be long in it."""
    lengths = [func.coalesce(func.length(cast(column, Text)), 0) for column in columns]
    return sum(lengths, literal(ROW_BYTES))


def _session(row: ClickSessionRow, events: list[ClickEvent]) -> ClickSession:
    return ClickSession(
        session_id=row.session_id,
        search_query=row.search_query,
        search_results=[
            SearchResult(result['object_id'], result.get('rank'), result.get('meta')) for result in row.search_results
        ],
        search_meta=row.search_meta,
        user_id=row.user_id,
        created_at=row.created_at,
        batch_id=row.batch_id,
        number=row.number,
        is_irrelevant=row.is_irrelevant,
        events=events,
    )
