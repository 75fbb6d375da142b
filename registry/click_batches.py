"""Batches of click sessions: one collects until it is released, and then the next one does."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from finetuner.excepts import NotFoundError
from registry.click_records import COLLECTING, RELEASED, ClickBatch
from registry.database import find_or_insert, read_page
from registry.models import ClickBatchRow, ClickSessionRow, now
from registry.records import Page


def lock_collecting(session: Session, account_id: str) -> ClickBatchRow:
    """The batch that collects, made if there is none. Nobody else changes it before this transaction ends."""
    row, _ = find_or_insert(
        session,
        select(ClickBatchRow).where(*_collecting(account_id)).with_for_update(),
        lambda: ClickBatchRow(account_id=account_id, status=COLLECTING, last_number=0),
    )
    return row


def release(session: Session, account_id: str, release_id: str) -> ClickBatch:
    """Close the batch that collects, or find the one that was released by this id.

    :raises NotFoundError: there is neither.
    """
    released = select(ClickBatchRow).where(
        ClickBatchRow.account_id == account_id, ClickBatchRow.release_id == release_id
    )
    if (row := session.scalar(released)) is not None:
        return _batch(session, row)
    row = session.scalar(select(ClickBatchRow).where(*_collecting(account_id)).with_for_update())
    if row is not None:
        # one that was released by this id at once keeps it, and this batch goes on collecting
        with suppress(IntegrityError), session.begin_nested():
            row.status, row.release_id, row.released_at = RELEASED, release_id, now()
    if (row := session.scalar(released)) is None:
        raise NotFoundError('There is no collecting batch')
    return _batch(session, row)


def get_batch(session: Session, account_id: str, batch_id: str) -> ClickBatch:
    """:raises NotFoundError: the account has none of this id."""
    row = session.get(ClickBatchRow, batch_id)
    if row is None or row.account_id != account_id:
        raise NotFoundError(f'There is no batch of the id {batch_id[:80]!r}')
    return _batch(session, row)


def list_batches(session: Session, account_id: str, page: int, size: int) -> Page[ClickBatch]:
    """One page of the account's batches, the newest first."""
    query = select(ClickBatchRow).where(ClickBatchRow.account_id == account_id)
    query = query.order_by(ClickBatchRow.created_at.desc(), ClickBatchRow.id.desc())
    rows, total = read_page(session, query, page, size)
    return Page([_batch(session, row) for (row,) in rows], total, page, size)


def _collecting(account_id: str) -> tuple:
    return ClickBatchRow.account_id == account_id, ClickBatchRow.status == COLLECTING


def _batch(session: Session, row: ClickBatchRow) -> ClickBatch:
    sessions = session.scalar(select(func.count()).where(ClickSessionRow.batch_id == row.id)) or 0
    return ClickBatch(row.id, row.status, sessions, row.created_at, row.release_id, row.released_at)
