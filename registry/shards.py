"""The data set on disk: Arrow IPC files of documents, written as a stream and read by memory-mapping."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from finetuner.excepts import DataError
from registry.objects import sync

if TYPE_CHECKING:
    from finetuner.documents import Document

# uncompressed, so that a reader can map the file and copy nothing
SCHEMA = pa.schema(
    [
        pa.field('id', pa.string(), nullable=False),
        pa.field('text', pa.large_string()),
        pa.field('uri', pa.string()),
        pa.field('blob', pa.large_binary()),
        pa.field('modality', pa.string()),
        pa.field('label', pa.string()),
        # JSON of all tags but the label
        pa.field('tags', pa.string(), nullable=False),
    ]
)
BATCH_ROWS = 4096
BATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class ShardInfo:
    """What was written.

    :param size: in bytes.
    :param sha256: of the file's bytes.
    :param content_digest: sha256 of all columns but the ids: the same whatever ids the documents were given.
    :param labelled: whether every row has a label.
    :param texts: whether every row is a text.
    """

    rows: int
    size: int
    sha256: str
    content_digest: str
    labelled: bool
    texts: bool


def write_shard(documents: Iterable[Document], path: Path) -> ShardInfo:
    """Write documents to an Arrow IPC file of the columns of `SCHEMA`. Holds one batch of them at a time in memory.

    The same documents give the same bytes. Embeddings are not stored: they are results, not data. The file is there
    when all is well, and nothing is if not.

    :raises DataError: there are no documents, or one has no content, more than one content, a tensor or chunks, a
        label that is not a string, number or boolean, or tags that JSON cannot hold. The message names the position
        and the id.
    """
    aside = path.with_name(f'{path.name}.part')
    try:
        with aside.open('wb') as file:
            writer = _Writer(file)
            for position, document in enumerate(documents):
                writer.add(_row(document, position))
            info = writer.finish()
        sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return info


def open_shards(paths: Sequence[Path]) -> pa.Table:
    """The rows of all shards, in the order of `paths`, as one table of `SCHEMA` over mapped files: nothing is copied.

    :raises DataError: a file is not a shard.
    """
    return pa.concat_tables([SCHEMA.empty_table(), *(_open_shard(path) for path in paths)])


def _open_shard(path: Path) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise DataError(f'{path} is not a shard of a data set: {error}') from error
    if not table.schema.equals(SCHEMA):
        raise DataError(f'{path} is not a shard of a data set: its columns are {", ".join(table.column_names)}')
    return table


class _Writer:
    """Collects rows into record batches and writes them; counts and hashes the bytes on their way."""

    def __init__(self, file: Any):
        self._sink = _HashingFile(file)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, 'w'), SCHEMA)
        self._content = hashlib.sha256()
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0
        self._written = self._labelled = self._texts = 0

    def add(self, row: tuple[Any, ...]) -> None:
        _, text, _, blob, _, label, tags = row
        self._rows.append(row)
        self._content.update(_content(row))
        self._bytes += len(text or '') + len(blob or b'') + len(tags)
        self._labelled += label is not None
        self._texts += text is not None
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def finish(self) -> ShardInfo:
        if self._rows:
            self._flush()
        if not self._written:
            raise DataError('There are no documents')
        self._writer.close()
        return ShardInfo(
            rows=self._written,
            size=self._sink.size,
            sha256=self._sink.digest.hexdigest(),
            content_digest=self._content.hexdigest(),
            labelled=self._labelled == self._written,
            texts=self._texts == self._written,
        )

    def _flush(self) -> None:
        columns = [
            pa.array(column, field.type) for column, field in zip(zip(*self._rows, strict=True), SCHEMA, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self._written += len(self._rows)
        self._rows, self._bytes = [], 0


class _HashingFile:
    def __init__(self, file: Any):
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return int(self._file.write(data))

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()


def _row(document: Document, position: int) -> tuple[Any, ...]:
    """The document's values in the order of `SCHEMA`."""
    # here, because docarray takes seconds to import, and most of the registry does without
    from finetuner.documents import LABEL, Document

    if not isinstance(document, Document):
        raise DataError(f'documents[{position}] is a {type(document).__name__}, not a Document')
    place = f'documents[{position}] (id {document.id!r})'
    contents = [name for name in ('text', 'uri', 'blob', 'tensor', 'chunks') if _is_set(getattr(document, name))]
    if not contents:
        raise DataError(f'{place} has no content: give it a text, uri or blob that is not empty')
    if len(contents) > 1:
        raise DataError(f'{place} has several contents ({", ".join(contents)}): give it one')
    if contents[0] in ('tensor', 'chunks'):
        raise DataError(f'{place} has {contents[0]}, which cannot be stored yet: give it a text, uri or blob')
    content = {contents[0]: getattr(document, contents[0])}
    text, uri, blob = content.get('text'), content.get('uri'), content.get('blob')
    identity = str(position) if document.id is None else str(document.id)
    for name, value in (('id', identity), ('text', text), ('uri', uri), ('modality', document.modality)):
        _check_unicode(value, f'{place}: {name}')
    tags = dict(document.tags or {})
    label = _label(tags.pop(LABEL, None), f'{place}: tags[{LABEL!r}]')
    return identity, text, uri, blob, document.modality, label, _json(tags, place)


def _content(row: tuple[Any, ...]) -> bytes:
    """The values of a row but its id, such that no two rows have the same bytes."""
    fields = []
    for value in row[1:]:
        if value is None:
            fields.append(b'-')
        else:
            field = value if isinstance(value, bytes) else value.encode()
            fields += (b'%d:' % len(field), field)
    return b''.join(fields)


def _is_set(content: Any) -> bool:
    if content is None:
        return False
    if isinstance(content, str):
        return bool(content.strip())
    if isinstance(content, np.ndarray):
        return True
    return len(content) > 0


def _label(value: Any, place: str) -> str | None:
    """Labels compare as strings. Whole numbers come as floats from some senders: 3 and 3.0 are one label."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if value is None:
        return None
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(f'{place} is {_shown(value)}: a label is a string, a number or a boolean')
    label = str(value)
    if not label.strip():
        raise DataError(f'{place} is empty: give it a label or leave it out')
    _check_unicode(label, place)
    return label


def _json(tags: dict[str, Any], place: str) -> str:
    if not tags:
        return '{}'
    try:
        return json.dumps(tags, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f'{place}: tags cannot be written as JSON: {error}') from error


def _check_unicode(value: str | None, place: str) -> None:
    if value is None or value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f'{place} is not valid Unicode: {error.reason} at character {error.start}') from error


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f'{shown[:80]}…'
