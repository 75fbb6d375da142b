"""Sending training data to the service: in parts of bounded size, each object once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from finetuner.client.names import dataset_name
from finetuner.data import CSVOptions, read_data
from finetuner.data.reading import is_data_path
from finetuner.excepts import DataError, FinetunerServerError, NotFoundError, QuotaError, RegistryError

if TYPE_CHECKING:
    from finetuner.client.session import Session
    from finetuner.documents import Document

    Data = str | Path | TextIO | Iterable[Document]

logger = logging.getLogger(__name__)

PART_ROWS = 10_000
PART_BYTES = 8 << 20  # on the wire


class Uploader:
    """Uploads the data of one run. The same object, or the same file, is sent once and known by its first name.

    :param csv_options: how the data is read.
    :param task: what the model that is to learn does, such as 'text-to-image'; None if it is not known.
    """

    def __init__(
        self,
        session: Session,
        experiment_name: str,
        run_name: str,
        csv_options: CSVOptions | None = None,
        task: str | None = None,
    ):
        self._session = session
        self._run = experiment_name, run_name
        self._csv_options = csv_options
        self._task = task
        self._names: dict[Any, str] = {}
        self._kept: list[Any] = []  # so that no other object gets the id of one that was sent
        self._made: list[str] = []  # data sets that there were none of before

    def name_of(self, data: Data, kind: str) -> str:
        """The name of the data set that `data` is in the service, after sending it if need be.

        :param data: a path, a file open as text, a data set of the library `datasets`, documents, or the name of an
            ingested data set.
        :param kind: what it is for: 'train', 'eval', 'query' or 'index'.
        :raises DataError: `data` is neither, a file does not exist, or a row or document is malformed.
        """
        if isinstance(data, str) and not is_data_path(data):
            return data
        key = Path(data).expanduser().resolve() if isinstance(data, str | Path) else id(data)
        if key not in self._names:
            name = dataset_name(*self._run, kind)
            options = self._csv_options or CSVOptions()
            is_whole = options.size is None and options.sampling_rate is None
            total = len(data) if is_whole and isinstance(data, Sized) and not isinstance(data, str) else None
            self._send(self._documents(data, kind), name, kind, total)
            self._kept.append(data)
            self._names[key] = name
        return self._names[key]

    def discard(self) -> None:
        """Delete what was sent, for no run will read it. Data sets that were there before stay."""
        for name in self._made:
            try:
                self._session.request('/delete_dataset', name=name)
            except NotFoundError:  # nothing of it had arrived
                pass
            except (FinetunerServerError, RegistryError) as error:
                logger.warning('%s, which no run reads, stays in the service: %s', name, error)
        self._made.clear()

    def _is_there(self, name: str) -> bool:
        try:
            self._session.request('/dataset', name=name, size=1)
        except NotFoundError:
            return False
        return True

    def _documents(self, data: Data, kind: str) -> Iterable[Document]:
        is_file = isinstance(data, str | Path) or hasattr(data, 'read')
        return read_data(data, self._csv_options, None if is_file else f'the {kind} data', self._task)

    def _send(self, documents: Iterable[Document], name: str, kind: str, total: int | None) -> None:
        from rich.progress import MofNCompleteColumn, TimeElapsedColumn

        from finetuner.console import make_progress

        sent = 0
        rows = 0
        with make_progress(MofNCompleteColumn(), TimeElapsedColumn()) as progress:
            task = progress.add_task(f'Uploading the {kind} data', total=total)
            for number, (count, message) in enumerate(_parts(documents, kind)):
                if not number and not self._is_there(name):
                    self._made.append(name)
                try:
                    rows = int(self._session.request('/ingest', message, name=name, part=number).tags['rows'])
                except QuotaError:
                    raise
                except RegistryError as error:
                    raise RegistryError(
                        f'{error}. If the data of this run changed, give it another run_name'
                    ) from error
                except DataError as error:
                    place = f' (counted from document {sent} of the {kind} data)' if sent else ''
                    raise DataError(f'{error}{place}') from error
                sent += count
                progress.update(task, completed=sent)
        if not sent:
            raise DataError(f'the {kind} data is empty')
        if rows != sent:
            raise RegistryError(
                f'the data set {name} holds {rows} documents where {sent} were sent now: an earlier upload differs. '
                'Give another run_name'
            )


def _parts(documents: Iterable[Document], kind: str) -> Iterator[tuple[int, bytes]]:
    """The documents in parts: how many, and a serialized `docarray.DocListProto`."""
    from docarray.proto import DocListProto

    part: list[bytes] = []
    size = 0
    for position, document in enumerate(documents):
        try:
            message = DocListProto(docs=[document.to_protobuf()]).SerializeToString()
        except DataError as error:
            raise DataError(f'{error} (item {position} of the {kind} data)') from error
        if part and (len(part) == PART_ROWS or size + len(message) > PART_BYTES):
            yield len(part), b''.join(part)
            part, size = [], 0
        part.append(message)  # lists of one document after the other are a list of them all
        size += len(message)
    if part:
        yield len(part), b''.join(part)
