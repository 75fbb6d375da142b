"""The data set on disk: Arrow IPC files of documents, written as a stream and read by memory-mapping."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetuner.data.contents import modality_of
from finetuner.excepts import DataError, QuotaError
from registry.objects import sync
from registry.shard_rows import SHAPES, Cell, Row, row_of

if TYPE_CHECKING:
    from finetuner.documents import Document

Shape = Literal['items', 'pairs', 'triplets']
Content = str | bytes | np.ndarray

# uncompressed, so that a reader can map the file and copy nothing
CONTENT_FIELDS = [
    pa.field('text', pa.large_string()),
    pa.field('uri', pa.string()),
    pa.field('blob', pa.large_binary()),
    # the numbers in the order of C, little-endian; `dtype` is float32 or uint8
    pa.field('tensor', pa.large_binary()),
    pa.field('dtype', pa.string()),
    pa.field('shape', pa.list_(pa.int32())),
    pa.field('modality', pa.string()),
]
SCHEMA = pa.schema(
    [
        pa.field('id', pa.string(), nullable=False),
        *CONTENT_FIELDS,
        pa.field('label', pa.string()),
        pa.field('score', pa.float32()),
        # JSON of all tags but label and score
        pa.field('tags', pa.string(), nullable=False),
        # the contents of a pair (2) or of a query, its positive and its negative (3); else null
        pa.field('chunks', pa.list_(pa.struct(CONTENT_FIELDS))),
    ]
)
OLD_COLUMNS = ['id', 'text', 'uri', 'blob', 'modality', 'label', 'tags']
"""Of the shards that were written before there were tensors, scores and chunks."""
BATCH_ROWS = 4096
BATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class ShardInfo:
    """What was written.

    :param size: in bytes.
    :param sha256: of the file's bytes.
    :param content_digest: sha256 of all columns but the ids: the same whatever ids the documents were given.
    :param shape: how many contents a row has: 'items' one, 'pairs' two, 'triplets' three.
    :param modalities: of each of these: 'text', 'image', 'mesh' or 'tensor'.
    :param labelled: whether every row has a label.
    :param scored: whether every row has a score.
    :param linked: whether a content is known by its URI alone.
    """

    rows: int
    size: int
    sha256: str
    content_digest: str
    shape: Shape
    modalities: tuple[str, ...]
    labelled: bool
    scored: bool
    linked: bool


@dataclass(frozen=True)
class Bound:
    """How large a shard may be.

    :param size: in bytes.
    :param reason: what is said of a larger one.
    """

    size: int
    reason: str


def write_shard(documents: Iterable[Document], path: Path, bound: Bound | None = None) -> ShardInfo:
    """Write documents to an Arrow IPC file of the columns of `SCHEMA`. Holds one batch of them at a time in memory.

    A document is an item (one content), a pair (2 chunks) or a triplet (3 chunks), and all are of one shape and of the
    same modalities. The same documents give the same bytes. Embeddings are not stored: they are results, not data. The
    file is there when all is well, and nothing is if not.

    :raises DataError: there are no documents, or one has no content, more than one, a content whose modality cannot be
        told, another shape or modality than the first, a label that is not a string, number or boolean, a score that
        is not a number, or tags that JSON cannot hold. The message names the position and the id.
    :raises QuotaError: the file would be larger than `bound`.
    """
    aside = path.with_name(f'{path.name}.part')
    try:
        with aside.open('wb') as file:
            writer = _Writer(file, bound)
            for position, document in enumerate(documents):
                writer.add(row_of(document, position), position)
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
    if table.schema.equals(SCHEMA):
        return table
    if not table.schema.equals(pa.schema([SCHEMA.field(name) for name in OLD_COLUMNS])):
        raise DataError(f'{path} is not a shard of a data set: its columns are {", ".join(table.column_names)}')
    rows = [len(batch) for batch in table.to_batches()]
    columns = []
    for field in SCHEMA:
        if field.name in OLD_COLUMNS:
            columns.append(table[field.name])
        else:  # one array of nulls for all batches
            nulls = pa.nulls(max(rows, default=0), field.type)
            columns.append(pa.chunked_array([nulls.slice(0, count) for count in rows], field.type))
    return pa.table(columns, schema=SCHEMA)


class DatasetReader:
    """A data set to learn from, in mapped files.

    :param paths: its shards, in order.
    :param name: what messages call it.
    :param allow_links: whether contents may be known by their URI alone. A service must not open what its clients name.
    :raises DataError: a file is not a shard, there are no rows, not all are of one shape, or there are links.

    Its `shape`, `modalities`, `labelled`, `scored` and `linked` are as in :class:`ShardInfo`.
    """

    def __init__(self, paths: Sequence[Path], name: str, allow_links: bool = True):
        self.name = name
        self.table = open_shards(paths)
        self._batches = [batch for batch in self.table.to_batches() if len(batch)]
        if not self._batches:
            raise DataError(f'{name} is empty')
        self._starts = np.cumsum([0, *map(len, self._batches)])
        self._width = self._check_shape()
        self.shape: Shape = SHAPES[self._width]  # type: ignore[assignment]
        self.modalities = tuple(self._modality(column) for column in range(self._width))
        self.labelled = self.table['label'].null_count == 0
        self.scored = self.table['score'].null_count == 0
        self.linked = any(self._has_links(batch) for batch in self._batches)
        if self.linked and not allow_links:
            raise DataError(f'{name} names files or URLs, which are not opened here: their bytes are needed, as blob')

    def __len__(self) -> int:
        return len(self.table)

    def contents(self, column: int, start: int, stop: int) -> list[Content]:
        """The contents of one column in the rows from `start` to before `stop`, copied out of the files but tensors.

        Texts are str. Images and meshes are bytes; arrays if they were given as such; str, the URI, if no more is
        known. Tensors are read-only float32 or uint8 views of the mapped files.

        :raises DataError: a row has no content of the column's modality; the message names it.
        """
        contents: list[Content] = []
        for batch, first, rows in self._pieces(start, stop):
            cells, places = self._cells(batch, column, rows)
            if self.modalities[column] == 'text':
                texts = cells('text').take(places)
                if texts.null_count:
                    row = first + pc.index(pc.is_null(texts), True).as_py()
                    raise DataError(f'{self.name}: document {row} (id {self._id(row)!r}) is no text')
                contents += texts.to_pylist()
            else:
                arrays = [cells(name) for name in ('blob', 'tensor', 'dtype', 'shape', 'uri')]
                for offset, place in enumerate(places.to_pylist()):
                    content = _content(*(array[place] for array in arrays))
                    if content is None:
                        row = first + offset
                        raise DataError(f'{self.name}: document {row} (id {self._id(row)!r}) is a text')
                    contents.append(content)
        return contents

    def spans(self, max_rows: int = 256) -> Iterator[tuple[int, int]]:
        """Start and stop of pieces that together are all rows, each of at most `max_rows` and about 8 MiB."""
        for start, stop in zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True):
            for first in range(start, stop, max_rows):
                yield first, min(first + max_rows, stop)

    def titles(self, column: int, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Contents for people: texts, else where they are from, else the document's id."""
        titles = []
        for row in map(int, rows):
            [(batch, _, piece)] = self._pieces(row, row + 1)
            cells, places = self._cells(batch, column, piece)
            place = places[0].as_py()
            uri = cells('uri')[place].as_py()
            shown = uri if uri is None or not uri.startswith('data:') else None
            titles.append(cells('text')[place].as_py() or shown or self._id(row))
        return titles

    def labels(self) -> tuple[np.ndarray, list[str]]:
        """The class number of every row, int32 [N], and the labels by number, in the order in which they appear.

        :raises DataError: a row has no label; the message names the first.
        """
        column = self._complete('label').dictionary_encode().combine_chunks()
        return column.indices.to_numpy(zero_copy_only=False), column.dictionary.to_pylist()

    def scores(self) -> np.ndarray:
        """The scores, or margins, float32 [N].

        :raises DataError: a row has none; the message names the first.
        """
        return self._complete('score').to_numpy()

    def _complete(self, name: str) -> pa.ChunkedArray:
        column = self.table[name]
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise DataError(f'{self.name}: document {row} (id {self._id(row)!r}) has no {name}')
        return column

    def _id(self, row: int) -> str:
        return str(self.table['id'][row].as_py())

    def _check_shape(self) -> int:
        """How many contents every row has."""
        width = _widths(self._batches[0])[0].as_py()
        for start, batch in zip(self._starts, self._batches, strict=False):
            others = pc.not_equal(_widths(batch), width)
            if pc.any(others).as_py():
                row = int(start) + pc.index(others, True).as_py()
                raise DataError(f'{self.name}: document {row} (id {self._id(row)!r}) has another shape than the first')
        return int(width)

    def _modality(self, column: int) -> str:
        cells, places = self._cells(self._batches[0], column, slice(0, 1))
        first = {name: cells(name)[places[0].as_py()].as_py() for name in ('modality', 'text', 'uri', 'blob', 'tensor')}
        modality = modality_of(**first)
        if modality is None:
            raise DataError(f'{self.name}: document 0 (id {self._id(0)!r}) is no known image or mesh')
        return modality

    def _has_links(self, batch: pa.RecordBatch) -> bool:
        source = batch if self._width == 1 else batch.column('chunks').flatten()
        uri, blob, tensor = (_field(source, name) for name in ('uri', 'blob', 'tensor'))
        if uri.null_count == len(uri):
            return False
        return bool(pc.any(pc.and_(uri.is_valid(), pc.and_(blob.is_null(), tensor.is_null()))).as_py())

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[pa.RecordBatch, int, slice]]:
        """The batches that hold the rows: each with the number of its first such row, and where those are in it."""
        while start < stop:
            number = int(np.searchsorted(self._starts, start, 'right')) - 1
            base = int(self._starts[number])
            end = min(stop, int(self._starts[number + 1]))
            yield self._batches[number], start, slice(start - base, end - base)
            start = end

    def _cells(self, batch: pa.RecordBatch, column: int, rows: slice) -> tuple[Any, pa.Array]:
        """What gives a batch's contents by field, and at which places of it those of `column` in `rows` are."""
        if self._width == 1:
            return lambda name: batch.column(name), pa.array(np.arange(rows.start, rows.stop))
        chunks = batch.column('chunks').flatten()
        places = np.arange(rows.start, rows.stop) * self._width + column
        return lambda name: chunks.field(name), pa.array(places)


def _widths(batch: pa.RecordBatch) -> pa.Array:
    return pc.fill_null(pc.list_value_length(batch.column('chunks')), 1)


def _field(source: Any, name: str) -> pa.Array:
    return source.column(name) if isinstance(source, pa.RecordBatch) else source.field(name)


def _content(blob: Any, tensor: Any, dtype: Any, shape: Any, uri: Any) -> Content | None:
    if blob.is_valid:
        return bytes(blob.as_py())
    if tensor.is_valid:
        return np.frombuffer(tensor.as_buffer(), dtype.as_py()).reshape(shape.as_py())
    return None if uri.as_py() is None else str(uri.as_py())


class _Writer:
    """Collects rows into record batches and writes them; counts and hashes the bytes on their way."""

    def __init__(self, file: Any, bound: Bound | None):
        self._sink = _HashingFile(file, bound)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, 'w'), SCHEMA)
        self._content = hashlib.sha256()
        self._rows: list[Row] = []
        self._bytes = 0
        self._written = self._labelled = self._scored = 0
        self._linked = False
        self._first: Row | None = None

    def add(self, row: Row, position: int) -> None:
        if self._first is None:
            self._first = row
        _check_alike(row, self._first, position)
        self._rows.append(row)
        self._content.update(row.content())
        self._bytes += row.size
        self._labelled += row.label is not None
        self._scored += row.score is not None
        self._linked = self._linked or any(cell.is_linked for cell in row.cells)
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def finish(self) -> ShardInfo:
        if self._rows:
            self._flush()
        if self._first is None:
            raise DataError('There are no documents')
        self._writer.close()
        return ShardInfo(
            rows=self._written,
            size=self._sink.size,
            sha256=self._sink.digest.hexdigest(),
            content_digest=self._content.hexdigest(),
            shape=SHAPES[len(self._first.cells)],  # type: ignore[arg-type]
            modalities=tuple(cell.kind for cell in self._first.cells),
            labelled=self._labelled == self._written,
            scored=self._scored == self._written,
            linked=self._linked,
        )

    def _flush(self) -> None:
        self._writer.write_batch(_batch(self._rows))
        self._written += len(self._rows)
        self._rows, self._bytes = [], 0


def _check_alike(row: Row, first: Row, position: int) -> None:
    """Training reads columns: every row must have the same."""
    place = f'documents[{position}] (id {row.id!r})'
    if len(row.cells) != len(first.cells):
        kinds = {1: 'an item', 2: 'a pair', 3: 'a triplet'}
        raise DataError(
            f'{place} is {kinds[len(row.cells)]}, and the first document {kinds[len(first.cells)]}: '
            'the documents of a data set are of one shape'
        )
    for number, (cell, other) in enumerate(zip(row.cells, first.cells, strict=True)):
        where = place if len(row.cells) == 1 else f'{place}: chunk {number}'
        if cell.kind != other.kind:
            raise DataError(
                f'{where} is of the modality {cell.kind}, and in the first document {other.kind}: '
                'the documents of a data set are of one kind'
            )
        if cell.kind == 'tensor' and cell.shape != other.shape:
            raise DataError(f'{where} has a tensor of shape {cell.shape}, and the first document {other.shape}')


def _batch(rows: list[Row]) -> pa.RecordBatch:
    width = len(rows[0].cells)
    if width == 1:
        columns = _cell_arrays([row.cells[0] for row in rows])
        chunks = pa.nulls(len(rows), SCHEMA.field('chunks').type)
    else:
        columns = [pa.nulls(len(rows), field.type) for field in CONTENT_FIELDS]
        cells = pa.StructArray.from_arrays(
            _cell_arrays([cell for row in rows for cell in row.cells]), fields=CONTENT_FIELDS
        )
        offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * width)
        chunks = pa.ListArray.from_arrays(offsets, cells, type=SCHEMA.field('chunks').type)
    arrays = [
        pa.array([row.id for row in rows], pa.string()),
        *columns,
        pa.array([row.label for row in rows], pa.string()),
        pa.array([row.score for row in rows], pa.float32()),
        pa.array([row.tags for row in rows], pa.string()),
        chunks,
    ]
    return pa.record_batch(arrays, schema=SCHEMA)


def _cell_arrays(cells: list[Cell]) -> list[pa.Array]:
    # the last value of a cell, its kind, follows from the others
    columns = list(zip(*cells, strict=True))[:-1]
    return [pa.array(column, field.type) for column, field in zip(columns, CONTENT_FIELDS, strict=True)]


class _HashingFile:
    def __init__(self, file: Any, bound: Bound | None):
        self._file = file
        self._bound = bound
        self.digest = hashlib.sha256()
        self.size = 0

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def write(self, data: bytes) -> int:
        if self._bound is not None and self.size + len(data) > self._bound.size:
            raise QuotaError(self._bound.reason)
        self.digest.update(data)
        self.size += len(data)
        return int(self._file.write(data))

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()
