"""Data sets: named, growing lists of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from finetuner.excepts import RegistryError
from registry.database import find_or_insert
from registry.models import DatasetRow, ShardRow
from registry.names import known
from registry.records import Dataset, Shard
from registry.shards import ShardInfo

MAX_PART = 2**53  # what still is exact when a client's JSON makes a float of it


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

    :raises RegistryError: the account has none of this name.
    """
    owned = DatasetRow.account_id == account_id
    row = session.scalar(select(DatasetRow).where(owned, DatasetRow.name == name))
    if row is None:
        names = session.scalars(select(DatasetRow.name).where(owned))
        raise RegistryError(f'There is no data set {str(name)[:200]!r}: {known(str(name), names)}')
    return _dataset(row.id, row.name, _shards(session, row.id))


def insert_shard(
    session: Session, account_id: str, name: str, part: int | None, shard_id: str, key: str, info: ShardInfo
) -> Dataset:
    """Append a shard as `part`, or as the next part, and return the data set. A part that is there is left as it is.

    :raises RegistryError: the part is there with other content.
    """
    query = select(DatasetRow).where(DatasetRow.account_id == account_id, DatasetRow.name == name).with_for_update()
    row, _ = find_or_insert(session, query, lambda: DatasetRow(account_id=account_id, name=name))
    if part is None:
        last = session.scalar(select(func.max(ShardRow.part)).where(ShardRow.dataset_id == row.id))
        part = 0 if last is None else last + 1
    if not _has_part(session, row.id, name, part, info.content_digest):
        session.add(
            ShardRow(
                id=shard_id,
                dataset_id=row.id,
                part=part,
                rows=info.rows,
                size=info.size,
                sha256=info.sha256,
                content_digest=info.content_digest,
                labelled=info.labelled,
                texts=info.texts,
                key=key,
            )
        )
        session.flush()
    return _dataset(row.id, row.name, _shards(session, row.id))


def has_part(session: Session, account_id: str, name: str, part: int, content_digest: str) -> bool:
    """Whether the data set has this part with this content.

    :raises RegistryError: it has the part with other content.
    """
    query = select(DatasetRow.id).where(DatasetRow.account_id == account_id, DatasetRow.name == name)
    dataset_id = session.scalar(query)
    return dataset_id is not None and _has_part(session, dataset_id, name, part, content_digest)


def snapshot(session: Session, account_id: str, names: Iterable[str]) -> dict[str, dict[str, object]]:
    """The data sets as they are now, as JSON: what a run keeps, so that later parts do not change it.

    :raises RegistryError: the account has none of such a name.
    """
    datasets = {name: get_dataset(session, account_id, name) for name in names}
    return {
        name: {
            'id': dataset.id,
            'digest': dataset.digest,
            'rows': dataset.rows,
            'size': dataset.size,
            'labelled': dataset.labelled,
            'texts': dataset.texts,
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


def _has_part(session: Session, dataset_id: str, name: str, part: int, content_digest: str) -> bool:
    query = select(ShardRow.content_digest).where(ShardRow.dataset_id == dataset_id, ShardRow.part == part)
    found = session.scalar(query)
    if found is not None and found != content_digest:
        raise RegistryError(
            f'Part {part} of the data set {name!r} is there already, with other content: '
            'send it as another part, or under another name'
        )
    return found is not None


def _shards(session: Session, dataset_id: str) -> list[Shard]:
    # columns, not rows: a data set may have thousands of shards
    query = select(
        ShardRow.id,
        ShardRow.part,
        ShardRow.rows,
        ShardRow.size,
        ShardRow.sha256,
        ShardRow.content_digest,
        ShardRow.labelled,
        ShardRow.texts,
        ShardRow.key,
    )
    return [
        Shard(*row) for row in session.execute(query.where(ShardRow.dataset_id == dataset_id).order_by(ShardRow.part))
    ]


def _dataset(dataset_id: str, name: str, shards: list[Shard]) -> Dataset:
    return Dataset(
        id=dataset_id,
        name=name,
        rows=sum(shard.rows for shard in shards),
        size=sum(shard.size for shard in shards),
        digest=hashlib.sha256(b''.join(bytes.fromhex(shard.content_digest) for shard in shards)).hexdigest(),
        labelled=all(shard.labelled for shard in shards),
        texts=all(shard.texts for shard in shards),
        shards=shards,
    )
