"""Reading a file that a client sent whole."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from executors.sources import allowed_links
from finetuner.data import CSVOptions, read_data
from finetuner.documents import Document
from finetuner.excepts import DataError


def read_inline(
    documents: Sequence[Document], format: str, sha256: str | None, name: str, options: CSVOptions
) -> Iterator[Document]:
    """The documents of the file in the blob of the one document. The paths and URLs in it are not opened.

    :param format: 'csv', 'jsonl', 'parquet' or 'arrow'.
    :param sha256: of the file, if the client told it.
    :param name: what errors call the file.
    :raises DataError: there is no such file, it has another sha256, or a row is malformed.
    """
    if len(documents) != 1 or not documents[0].blob:
        raise DataError(f'send the {format} file in the blob of one document')
    content = bytes(documents[0].blob)
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(f'the file has the sha256 {found}, not {sha256}: send it again')
    links, shown = allowed_links((), ()).rooted(), f'{name}.{format}'
    with tempfile.NamedTemporaryFile(suffix=f'.{format}') as copy:
        copy.write(content)
        copy.flush()
        yield from read_data(Path(copy.name), options, shown, links=links)
