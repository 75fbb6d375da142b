"""Data sets: named, growing lists of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import reduce

from sqlalchemy import Text, cast, delete, func, select
from sqlalchemy.orm import Session

from finetuner.excepts import DataError, NotFoundError, RegistryError
from registry.database import find_or_insert
from registry.models import DatasetRow, RunRow, ShardRow
from registry.names import known
from registry.records import Dataset, DatasetSummary, Shard
from registry.shards import ShardInfo

MAX_PART = 2**53  # what still is exact when a client's JSON makes a float of it
EMPTY = hashlib.sha256().hexdigest()


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
    owned = DatasetRow.account_id == account_id
    row = session.scalar(select(DatasetRow).where(owned, DatasetRow.name == name))
    if row is None:
        names = session.scalars(select(DatasetRow.name).where(owned))
        raise NotFoundError(f'There is no data set {str(name)[:200]!r}: {known(str(name), names)}')
    return _dataset(row.id, row.name, _shards(session, row.id))


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
    dropped = [] if there is None else _drop(session, row.id, name, part)
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
        whole = _dataset(row.id, row.name, _shards(session, row.id))
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


def snapshot(session: Session, account_id: str, names: Iterable[str]) -> dict[str, dict[str, object]]:
    """The data sets as they are now, as JSON: what a run keeps, so that later parts do not change it.

    :raises RegistryError: the account has none of such a name.
    """
    names = list(names)
    # so that no part is replaced until the run is there
    locked = select(DatasetRow.id).where(DatasetRow.account_id == account_id, DatasetRow.name.in_(names))
    session.execute(locked.order_by(DatasetRow.id).with_for_update(read=True))
    datasets = {name: get_dataset(session, account_id, name) for name in names}
    return {
        name: {
            'id': dataset.id,
            'digest': dataset.digest,
            'rows': dataset.rows,
            'size': dataset.size,
            'shape': dataset.shape,
            'modalities': list(dataset.modalities),
            'labelled': dataset.labelled,
            'scored': dataset.scored,
            'linked': dataset.linked,
            'shards': [shard.id for shard in dataset.shards],
        }
        for name, dataset in datasets.items()
    }


def restore(session: Session, kept: dict[str, dict[str, object]]) -> dict[str, Dataset]:
    """The data sets that a snapshot names, with the shards they had.

    :raises RegistryError: they are not what they were.
    """
    datasets = {}
    for name, values in kept.items():
        ids = values['shards']
        assert isinstance(ids, list)
        wanted = set(ids)
        shards = [shard for shard in _shards(session, str(values['id'])) if shard.id in wanted]
        dataset = _dataset(str(values['id']), name, shards)
        if dataset.digest != values['digest']:
            raise RegistryError(f'The data set {name!r} has changed since the run was created: parts of it are missing')
        datasets[name] = dataset
    return datasets


def _drop(session: Session, dataset_id: str, name: str, part: int) -> list[str]:
    """Remove what new content of `part` replaces: the part, or with part 0 all parts. Returns the objects' keys."""
    doomed = [ShardRow.dataset_id == dataset_id]
    if part > 0:
        doomed.append(ShardRow.part == part)
    shards = session.execute(select(ShardRow.id, ShardRow.key).where(*doomed)).all()
    if not _read_by_runs(session, dataset_id).isdisjoint(shard_id for shard_id, _ in shards):
        raise RegistryError(
            f'Part {part} of the data set {name!r} is there already, with other content, and a run reads the data set: '
            'send it as another part, or under another name'
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


def _read_by_runs(session: Session, dataset_id: str) -> set[str]:
    """The ids of the shards of a data set that any run reads or has read."""
    snapshots = session.scalars(select(RunRow.datasets).where(cast(RunRow.datasets, Text).contains(dataset_id)))
    return {shard_id for kept in snapshots for values in kept.values() for shard_id in values['shards']}


def _shards(session: Session, dataset_id: str) -> list[Shard]:
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
    rows = session.execute(query.where(ShardRow.dataset_id == dataset_id).order_by(ShardRow.part))
    return [Shard(**{**row._mapping, 'modalities': _split(row.modalities)}) for row in rows]


def _dataset(dataset_id: str, name: str, shards: list[Shard]) -> Dataset:
    return Dataset(
        id=dataset_id,
        name=name,
        rows=sum(shard.rows for shard in shards),
        size=sum(shard.size for shard in shards),
        digest=reduce(_chain, (shard.content_digest for shard in shards), EMPTY),
        shape=shards[0].shape if shards else 'items',
        modalities=shards[0].modalities if shards else (),
        labelled=all(shard.labelled for shard in shards),
        scored=all(shard.scored for shard in shards),
        linked=any(shard.linked for shard in shards),
        shards=shards,
    )


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
    )


def _split(modalities: str) -> tuple[str, ...]:
    return tuple(modalities.split(',')) if modalities else ()
