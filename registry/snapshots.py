"""What a run keeps of its data sets, so that later parts do not change them."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from finetuner.excepts import RegistryError
from registry.datasets import get_dataset, read_shards, to_dataset
from registry.models import DatasetRow
from registry.records import Dataset


def snapshot(session: Session, account_id: str, names: Iterable[str]) -> dict[str, dict[str, object]]:
    """The data sets as they are now, as JSON: what a run keeps, so that later parts do not change it.

    :raises RegistryError: the account has none of such a name.
    """
    names = list(names)
    # so that no part is replaced, and no data set deleted, until the run is there
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


def hold(session: Session, kept: dict[str, dict[str, object]]) -> None:
    """See that all is there that a snapshot names, and that nobody deletes it until the end of this write.

    :raises RegistryError: something is not what it was.
    """
    ids = [str(values['id']) for values in kept.values()]
    locked = select(DatasetRow.id).where(DatasetRow.id.in_(ids))
    session.execute(locked.order_by(DatasetRow.id).with_for_update(read=True))
    restore(session, kept)


def restore(session: Session, kept: dict[str, dict[str, object]]) -> dict[str, Dataset]:
    """The data sets that a snapshot names, with the shards they had.

    :raises RegistryError: they are not what they were.
    """
    datasets = {}
    for name, values in kept.items():
        row = session.get(DatasetRow, str(values['id']))
        if row is None:
            raise RegistryError(f'The data set {name!r} has been deleted since the run was created')
        ids = values['shards']
        assert isinstance(ids, list)
        wanted = set(ids)
        dataset = to_dataset(row, [shard for shard in read_shards(session, row.id) if shard.id in wanted])
        if dataset.digest != values['digest']:
            raise RegistryError(f'The data set {name!r} has changed since the run was created: parts of it are missing')
        datasets[name] = dataset
    return datasets
