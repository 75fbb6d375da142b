"""What accounts have and what they may have.

The quota of bytes is on data sets and artifacts. It stops what is sent and what is begun: an append that it has no
room for, and a new run of an account that is at its end. The artifact of a run that is under way is stored even if it
goes beyond the quota, for hours of training are worth more than the bytes.
"""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from finetuner.excepts import QuotaError, RegistryError
from registry.accounts import get_account_row, lock_account, to_account
from registry.models import AccountRow, ArtifactRow, CheckpointRow, DatasetRow, ExperimentRow, RunRow, SearchItemRow
from registry.records import CREATED, STARTED, Account, Stored, Usage
from registry.shards import Bound

SEARCH_BYTES = 'FINETUNER_SEARCH_BYTES'
"""Of the search items of each account."""
PART_BYTES = 'FINETUNER_PART_BYTES'
"""Of what is stored of one part of a data set."""
DEFAULTS = {SEARCH_BYTES: 1_000_000_000, PART_BYTES: 8 << 30}


def check_limits() -> None:
    """See whether the limits of the environment are such.

    :raises RegistryError: one is no number of bytes.
    """
    for name in DEFAULTS:
        _limit(name)


def set_quota(session: Session, account_id: str, max_bytes: int | None, max_runs: int | None) -> Account:
    """
    :raises RegistryError: there is no such account, or a number is below 0.
    """
    for name, value in (('bytes', max_bytes), ('runs', max_runs)):
        if value is not None and not 0 <= value < 2**63:
            raise RegistryError(f'{value} cannot be the most {name} of an account: give a number from 0 on')
    row = lock_account(session, account_id)
    row.max_bytes, row.max_runs = max_bytes, max_runs
    return to_account(row)


def usage(session: Session, account_id: str) -> Usage:
    """
    :raises RegistryError: there is no such account.
    """
    account = to_account(get_account_row(session, account_id))
    runs = select(RunRow.status, func.count()).join(ExperimentRow, ExperimentRow.id == RunRow.experiment_id)
    counts = dict(
        session.execute(runs.where(ExperimentRow.account_id == account_id).group_by(RunRow.status)).tuples().all()
    )
    checkpoints = (
        select(func.count(), _sum(CheckpointRow.size))
        .join(RunRow, RunRow.id == CheckpointRow.run_id)
        .join(ExperimentRow, ExperimentRow.id == RunRow.experiment_id)
        .where(ExperimentRow.account_id == account_id)
    )
    return Usage(
        account=account,
        datasets=_stored(
            session, select(func.count(), _sum(DatasetRow.size)).where(DatasetRow.account_id == account_id)
        ),
        artifacts=_stored(
            session, select(func.count(), _sum(ArtifactRow.size)).where(ArtifactRow.account_id == account_id)
        ),
        checkpoints=_stored(session, checkpoints),
        search_items=_stored(
            session, select(func.count(), _sum(SearchItemRow.size)).where(SearchItemRow.account_id == account_id)
        ),
        max_search_bytes=_limit(SEARCH_BYTES),
        waiting=counts.get(CREATED, 0),
        at_work=counts.get(STARTED, 0),
        runs=sum(counts.values()),
    )


def check_room(session: Session, account_id: str, size: int) -> None:
    """See whether `size` bytes more (or less) are within the quota of the account.

    :raises QuotaError: they are not.
    """
    limit = _max_bytes(session, account_id)
    if limit is None:
        return
    used = used_bytes(session, account_id)
    if used + size > limit:
        raise QuotaError(_no_room(limit, used, f'{size} more'))


def part_bound(session: Session, account_id: str, replaced: int) -> Bound:
    """How large a part may be, before it is known how large it is.

    :param replaced: the bytes of what other content would take the place of.
    """
    most = _limit(PART_BYTES)
    limit = _max_bytes(session, account_id)
    if limit is not None:
        used = used_bytes(session, account_id)
        # what is there already may be sent again, with longer ids, even if there is no room
        room = max(limit - used + replaced, 2 * replaced)
        if room < most:
            return Bound(room, _no_room(limit, used, 'all of these documents'))
    return Bound(
        most,
        f'The documents would take more than {most} bytes once they are stored, the most that a part of a data set may '
        f'have ({PART_BYTES}). Send them in several parts',
    )


def lock_quota(session: Session, account_id: str) -> bool:
    """Whether the account has a quota of bytes; if so, nobody else adds to what it has until the end of this write."""
    limited = _max_bytes(session, account_id) is not None
    if limited:
        lock_account(session, account_id)
    return limited


def check_items(session: Session, account_id: str) -> None:
    """See whether the account's search items, which are all in the memory of what searches, are within their limit.

    :raises QuotaError: they are not.
    """
    limit = _limit(SEARCH_BYTES)
    used = int(session.scalar(select(_sum(SearchItemRow.size)).where(SearchItemRow.account_id == account_id)) or 0)
    if used > limit:
        raise QuotaError(
            f'The search items of the account would take {used} bytes: at most {limit} are kept ({SEARCH_BYTES}). '
            'Delete items first'
        )


def used_bytes(session: Session, account_id: str) -> int:
    """Of data sets and artifacts."""
    datasets = session.scalar(select(_sum(DatasetRow.size)).where(DatasetRow.account_id == account_id))
    artifacts = session.scalar(select(_sum(ArtifactRow.size)).where(ArtifactRow.account_id == account_id))
    return int(datasets or 0) + int(artifacts or 0)


def _max_bytes(session: Session, account_id: str) -> int | None:
    return session.scalar(select(AccountRow.max_bytes).where(AccountRow.id == account_id))


def _limit(name: str) -> int:
    given = os.environ.get(name) or DEFAULTS[name]
    if not str(given).isdecimal():
        raise RegistryError(f'{name} is {given!r}: it is a number of bytes')
    return int(given)


def _no_room(limit: int, used: int, what: str) -> str:
    return (
        f'The quota of the account is {limit} bytes, of which {used} are used: there is no room for {what}. '
        'Delete data sets or runs, or ask for a larger quota'
    )


def _sum(column: Any) -> Any:
    return func.coalesce(func.sum(column), 0)


def _stored(session: Session, query: Any) -> Stored:
    count, size = session.execute(query).one()
    # the sum of bigints is a decimal number on PostgreSQL
    return Stored(count, int(size))
