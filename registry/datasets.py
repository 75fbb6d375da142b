"""Data sets: named, growing lists of shards."""

from __future__ import annotations

import hashlib
from functools import reduce
from typing import Any

from sqlalchemy import Select, Text, cast, delete, func, select
from sqlalchemy.orm import Session

from finetuner.excepts import DataError, NotFoundError, RegistryError, RunInProgressError
from registry.database import find_or_insert, read_page
from registry.models import DatasetRow, ExperimentRow, RunRow, ShardRow
from registry.names import known
from registry.records import CREATED, STARTED, Dataset, DatasetSummary, Page, Shard
from registry.shards import ShardInfo

MAX_PART = 2**53  # what still is exact when a client's JSON makes a float of it
EMPTY = hashlib.sha256().hexdigest()
UNSYNCHRONISED = {'synchronize_session': False}
"""For a deletion after which the session has no more use for the rows."""


def check_part(part: int | None) -> int | None:
    """
    :raises RegistryError: it is not a number from 0 on.
    """
    if part is None:
        return None
    if isinstance(part, bool) or not isinstance(part, int | float) or part != part // 1 or not 0 <= part <= MAX_PART:
        raise RegistryError(f'{part!r} cannot be a part of a data set: parts are numbered 0, 1, 2, ...')
    return int(part)


def get_dataset(session: Session, account_id: str, name: str) -> Dataset:
    """The data set as it is now.

    :raises NotFoundError: the account has none of this name.
    """
    row = _find_row(session, account_id, name)
    return to_dataset(row, read_shards(session, row.id))


def get_summary(session: Session, account_id: str, name: str) -> DatasetSummary:
    """The data set as it is now, without its shards.

    :raises RegistryError: the account has none of this name.
    """
    return _summary(_find_row(session, account_id, name))


def list_datasets(session: Session, account_id: str, page: int, size: int) -> Page[DatasetSummary]:
    """One page of the account's data sets, the newest first."""
    query = select(DatasetRow).where(DatasetRow.account_id == account_id)
    query = query.order_by(DatasetRow.created_at.desc(), DatasetRow.id.desc())
    rows, total = read_page(session, query, page, size)
    return Page([_summary(row) for (row,) in rows], total, page, size)


def list_shards(session: Session, account_id: str, name: str, page: int, size: int) -> Page[Shard]:
    """One page of the shards of a data set, in the order of their parts.

    :raises RegistryError: the account has none of this name.
    """
    row = _find_row(session, account_id, name)
    rows, total = read_page(session, _shard_query(row.id), page, size)
    return Page([_shard(row) for row in rows], total, page, size)


def delete_dataset(session: Session, account_id: str, name: str) -> tuple[DatasetSummary, list[str]]:
    """Delete a data set. Runs that have ended forget it; a later resume of one says so.

    :return: what it was, and the keys of its objects.
    :raises RegistryError: the account has none of this name.
    :raises RunInProgressError: a run that waits or is at work reads it.
    """
    row = _find_row(session, account_id, name, lock=True)
    reader = session.scalar(_runs_of(row).where(RunRow.status.in_([CREATED, STARTED])).limit(1))
    if reader is not None:
        state = 'waits' if reader.status == CREATED else 'is at work'
        raise RunInProgressError(
            f'The run {reader.name!r} of the experiment {reader.experiment.name!r} {state} and reads the data set '
            f'{name!r}: cancel it first'
        )
    keys = list(session.scalars(select(ShardRow.key).where(ShardRow.dataset_id == row.id)))
    summary = _summary(row)
    session.execute(delete(ShardRow).where(ShardRow.dataset_id == row.id))
    session.execute(delete(DatasetRow).where(DatasetRow.id == row.id))
    return summary, keys


def delete_all(session: Session, account_id: str) -> list[str]:
    """Delete all data sets of an account that has no runs, and return the keys of their objects."""
    owned = select(DatasetRow.id).where(DatasetRow.account_id == account_id)
    session.execute(owned.with_for_update())  # so that no shard is added to them
    keys = list(session.scalars(select(ShardRow.key).where(ShardRow.dataset_id.in_(owned))))
    session.execute(delete(ShardRow).where(ShardRow.dataset_id.in_(owned)), execution_options=UNSYNCHRONISED)
    session.execute(delete(DatasetRow).where(DatasetRow.account_id == account_id), execution_options=UNSYNCHRONISED)
    return keys


def replaced_bytes(session: Session, account_id: str, name: str, part: int | None) -> int:
    """How many bytes other content of this part would replace."""
    query = select(func.sum(ShardRow.size)).join(DatasetRow, DatasetRow.id == ShardRow.dataset_id)
    query = query.where(DatasetRow.account_id == account_id, DatasetRow.name == name)
    if part is None:
        return 0
    if part > 0:
        query = query.where(ShardRow.part == part)
    elif session.scalar(query.where(ShardRow.part == 0)) is None:
        return 0
    return int(session.scalar(query) or 0)


def insert_shard(
    session: Session, account_id: str, name: str, part: int | None, shard_id: str, key: str, info: ShardInfo
) -> tuple[DatasetSummary, list[str]]:
    """Add a shard as `part`, or as the next part. A part that is there with this content is left as it is.

    :return: the data set, and the keys of the shards that made way (see `Registry.append_documents`).
    :raises DataError: it holds other shapes or modalities than the parts that stay.
    :raises RegistryError: the part is there with other content, and a run reads what would make way.
    """
    query = select(DatasetRow).where(DatasetRow.account_id == account_id, DatasetRow.name == name).with_for_update()
    row, _ = find_or_insert(
        session,
        query,
        lambda: DatasetRow(
            account_id=account_id,
            name=name,
            rows=0,
            size=0,
            digest=EMPTY,
            shape=info.shape,
            modalities=','.join(info.modalities),
            labelled=True,
            scored=True,
            linked=False,
        ),
    )
    last = session.scalar(select(func.max(ShardRow.part)).where(ShardRow.dataset_id == row.id))
    if part is None:
        part = 0 if last is None else last + 1
    there = session.scalar(select(ShardRow.content_digest).where(ShardRow.dataset_id == row.id, ShardRow.part == part))
    if there == info.content_digest:
        return _summary(row), []
    dropped = [] if there is None else _drop(session, row, part)
    _check_alike(session, row, info)
    session.add(
        ShardRow(
            id=shard_id,
            dataset_id=row.id,
            part=part,
            rows=info.rows,
            size=info.size,
            sha256=info.sha256,
            content_digest=info.content_digest,
            shape=info.shape,
            modalities=','.join(info.modalities),
            labelled=info.labelled,
            scored=info.scored,
            linked=info.linked,
            key=key,
        )
    )
    session.flush()
    if last is None or part > last:
        row.rows += info.rows
        row.size += info.size
        row.digest = _chain(row.digest, info.content_digest)
        row.labelled &= info.labelled
        row.scored &= info.scored
        row.linked |= info.linked
    else:
        whole = to_dataset(row, read_shards(session, row.id))
        for field in ('rows', 'size', 'digest', 'shape', 'labelled', 'scored', 'linked'):
            setattr(row, field, getattr(whole, field))
        row.modalities = ','.join(whole.modalities)
    return _summary(row), dropped


def find_part(session: Session, account_id: str, name: str, part: int, content_digest: str) -> DatasetSummary | None:
    """The data set, if it has this part with this content."""
    row = session.scalar(
        select(DatasetRow)
        .join(ShardRow, ShardRow.dataset_id == DatasetRow.id)
        .where(DatasetRow.account_id == account_id, DatasetRow.name == name)
        .where(ShardRow.part == part, ShardRow.content_digest == content_digest)
    )
    return None if row is None else _summary(row)


def read_shards(session: Session, dataset_id: str) -> list[Shard]:
    """All shards of a data set, in the order of their parts."""
    return [_shard(row) for row in session.execute(_shard_query(dataset_id))]


def to_dataset(row: DatasetRow, shards: list[Shard]) -> Dataset:
    """A data set as it is with these of its shards."""
    return Dataset(
        id=row.id,
        name=row.name,
        rows=sum(shard.rows for shard in shards),
        size=sum(shard.size for shard in shards),
        digest=reduce(_chain, (shard.content_digest for shard in shards), EMPTY),
        shape=shards[0].shape if shards else 'items',
        modalities=shards[0].modalities if shards else (),
        labelled=all(shard.labelled for shard in shards),
        scored=all(shard.scored for shard in shards),
        linked=any(shard.linked for shard in shards),
        created_at=row.created_at,
        shards=shards,
    )


def _find_row(session: Session, account_id: str, name: str, lock: bool = False) -> DatasetRow:
    owned = DatasetRow.account_id == account_id
    query = select(DatasetRow).where(owned, DatasetRow.name == name)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        names = session.scalars(select(DatasetRow.name).where(owned))
        raise NotFoundError(f'There is no data set {str(name)[:200]!r}: {known(str(name), names)}')
    return row


def _drop(session: Session, row: DatasetRow, part: int) -> list[str]:
    """Remove what new content of `part` replaces: the part, or with part 0 all parts. Returns the objects' keys."""
    doomed = [ShardRow.dataset_id == row.id]
    if part > 0:
        doomed.append(ShardRow.part == part)
    shards = session.execute(select(ShardRow.id, ShardRow.key).where(*doomed)).all()
    if not _read_by_runs(session, row).isdisjoint(shard_id for shard_id, _ in shards):
        raise RegistryError(
            f'Part {part} of the data set {row.name!r} is there already, with other content, and a run reads the data '
            'set: send it as another part, or under another name'
        )
    session.execute(delete(ShardRow).where(*doomed))
    return [key for _, key in shards]


def _check_alike(session: Session, row: DatasetRow, info: ShardInfo) -> None:
    other = session.execute(
        select(ShardRow.shape, ShardRow.modalities)
        .where(ShardRow.dataset_id == row.id)
        .order_by(ShardRow.part)
        .limit(1)
    ).first()
    modalities = ','.join(info.modalities)
    # what was ingested before there were modalities may be anything
    if other is None or (other.shape == info.shape and other.modalities in (modalities, '')):
        return
    raise DataError(
        f'documents[0] to documents[{info.rows - 1}] are {info.shape} ({modalities}), and the data set {row.name!r} '
        f'holds {other.shape} ({other.modalities}): the documents of a data set are of one shape and kind'
    )


def _runs_of(row: DatasetRow) -> Select[RunRow]:
    """The runs that read, or have read, a data set."""
    query = select(RunRow).join(RunRow.experiment).where(ExperimentRow.account_id == row.account_id)
    return query.where(cast(RunRow.datasets, Text).contains(row.id))


def _read_by_runs(session: Session, row: DatasetRow) -> set[str]:
    """The ids of the shards of a data set that any run reads or has read."""
    snapshots = session.scalars(_runs_of(row).with_only_columns(RunRow.datasets))
    return {shard_id for kept in snapshots for values in kept.values() for shard_id in values['shards']}


def _shard_query(dataset_id: str) -> Any:
    # columns, not rows: a data set may have thousands of shards
    query = select(
        ShardRow.id,
        ShardRow.part,
        ShardRow.rows,
        ShardRow.size,
        ShardRow.sha256,
        ShardRow.content_digest,
        ShardRow.shape,
        ShardRow.modalities,
        ShardRow.labelled,
        ShardRow.scored,
        ShardRow.linked,
        ShardRow.key,
    )
    return query.where(ShardRow.dataset_id == dataset_id).order_by(ShardRow.part)


def _shard(row: Any) -> Shard:
    return Shard(**{**row._mapping, 'modalities': _split(row.modalities)})


def _chain(digest: str, content_digest: str) -> str:
    """The digest of a data set that grows by a shard: made of the one before, so that appending reads no shards."""
    return hashlib.sha256(bytes.fromhex(digest + content_digest)).hexdigest()


def _summary(row: DatasetRow) -> DatasetSummary:
    return DatasetSummary(
        id=row.id,
        name=row.name,
        rows=row.rows,
        size=row.size,
        digest=row.digest,
        shape=row.shape,
        modalities=_split(row.modalities),
        labelled=row.labelled,
        scored=row.scored,
        linked=row.linked,
        created_at=row.created_at,
    )


def _split(modalities: str) -> tuple[str, ...]:
    return tuple(modalities.split(',')) if modalities else ()
