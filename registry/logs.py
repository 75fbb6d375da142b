"""The logs of runs: pieces in the database, so that every node can read them.

Each attempt at a run writes a file where it works, and somebody there sends what is new of it. A piece's id is made of
the lease and of its place in that file: however often a piece is sent, it is there once.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from registry.database import Database
from registry.models import LogPieceRow, RunRow

MAX_BYTES = 64 << 20
"""Of the log of a run."""
TOO_LONG = f'\n[The log has reached {MAX_BYTES >> 20} MiB: what follows is left out.]\n'.encode()
MAX_PIECE = 1 << 18


def sent_bytes(session: Session, run_id: str, lease: str) -> int:
    """How much of the file of an attempt is in the log."""
    query = select(LogPieceRow.id, func.length(LogPieceRow.data)).where(
        LogPieceRow.run_id == run_id, LogPieceRow.id.between(_id(lease, 0), _id(lease, 16**12 - 1))
    )
    last = session.execute(query.order_by(LogPieceRow.id.desc()).limit(1)).one_or_none()
    return 0 if last is None else int(last[0][12:], 16) + last[1]


def append_log(database: Database, run_id: str, lease: str, start: int, data: bytes) -> None:
    """Add the bytes from `start` on of the file of an attempt, unless they are there. A deleted run has no log."""
    try:
        with database.write() as session:
            if session.scalar(select(RunRow.id).where(RunRow.id == run_id).with_for_update()) is None:
                return
            end = log_size(session, run_id)
            if end >= MAX_BYTES:
                return
            if end + len(data) >= MAX_BYTES:
                data = data[: MAX_BYTES - end] + TOO_LONG
            session.add(LogPieceRow(id=_id(lease, start), run_id=run_id, offset=end, data=data))
    except IntegrityError:
        with database.read() as session:
            if session.get(LogPieceRow, _id(lease, start)) is None:
                raise


def log_size(session: Session, run_id: str) -> int:
    query = select(LogPieceRow.offset + func.length(LogPieceRow.data)).where(LogPieceRow.run_id == run_id)
    return session.scalar(query.order_by(LogPieceRow.offset.desc()).limit(1)) or 0


def read_log(session: Session, run_id: str, offset: int, limit: int) -> bytes:
    """At most `limit` bytes of a run's log from `offset` on."""
    mine = LogPieceRow.run_id == run_id
    first = session.scalar(select(func.max(LogPieceRow.offset)).where(mine, LogPieceRow.offset <= offset))
    if first is None:
        return b''
    query = select(LogPieceRow.data).where(mine, LogPieceRow.offset.between(first, offset + limit - 1))
    data = b''.join(session.scalars(query.order_by(LogPieceRow.offset)))
    return data[offset - first : offset - first + limit]


def _id(lease: str, start: int) -> str:
    return f'{lease[:12]}{start:012x}'
