"""Data sets that the service holds."""

from __future__ import annotations

from finetuner.client.session import current_session
from finetuner.results import DatasetInfo, read_result


def list_datasets(page: int = 1, size: int = 50) -> list[DatasetInfo]:
    """Data sets, the newest first.

    :param page: from 1.
    :param size: data sets on a page, at most 100.
    """
    found = current_session().request('/datasets', page=page, size=size).tags['items']
    return [read_result(DatasetInfo, record) for record in found]


def get_dataset(name: str, page: int = 1, size: int = 50) -> DatasetInfo:
    """A data set, with a page of its parts.

    :param page: of the parts, from 1.
    :param size: parts on a page, at most 100.
    :raises RegistryError: there is no such data set.
    """
    return read_result(DatasetInfo, current_session().request('/dataset', name=name, page=page, size=size).tags)


def delete_dataset(name: str) -> DatasetInfo:
    """Delete a data set, and return what it was. Runs that have read it stay.

    :raises RegistryError: there is no such data set.
    :raises RunInProgressError: a run that waits or is at work reads it.
    """
    return read_result(DatasetInfo, current_session().request('/delete_dataset', name=name).tags)
