"""Reading Parquet and Arrow files, and the data sets of Hugging Face's `datasets`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from finetuner.data.options import CSVOptions
from finetuner.data.table import KIND_ROWS, SAMPLE_ROWS, Layout, Row, Table, drain, find_layout, look_ahead, scalar
from finetuner.excepts import DataError

BATCH_BYTES = 8 << 20
MAX_BATCH_ROWS = 4096
MAX_DECODED_ROWS = 128
"""Of a batch of Parquet: a file of a few bytes may hold one large value for many rows."""


def open_columnar(path: Path, options: CSVOptions, name: str) -> tuple[Table, Layout]:
    """The rows of a Parquet file, or of an Arrow file (of the file or the stream format).

    :raises DataError: it cannot be read, is empty, or its columns fit no shape.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise DataError(f'{name} needs pyarrow to be read: pip install pyarrow') from None
    try:
        names, batches = _open_parquet(path) if path.suffix.lower() == '.parquet' else _open_arrow(path)
        rows = _numbered(batches, name)
        ahead = look_ahead(rows, SAMPLE_ROWS)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f'{name} cannot be read: {error}') from error
    return _tabulate(Table(name, names, len(names), rows, folder=path.parent), options, ahead)


def open_dataset(dataset: Any, options: CSVOptions, name: str) -> tuple[Table, Layout]:
    """The rows of a `datasets.Dataset` or `IterableDataset`, or of what has `column_names` and gives dicts.

    :raises DataError: it is empty, or its columns fit no shape.
    """
    dataset = _keep_encoded(dataset)
    features = getattr(dataset, 'features', None) or {}
    rows = iter(dataset)
    first = next(rows, None)
    if first is None:
        raise DataError(f'{name} is empty')
    names = list(dataset.column_names or first)
    classes = {
        column: list(features[column].names)
        for column in names
        if column in features and type(features[column]).__name__ == 'ClassLabel'
    }

    def values(row: dict[str, Any]) -> list[Any]:
        found = [row.get(column) for column in names]
        for column, known in classes.items():
            at = names.index(column)
            label = scalar(found[at])
            if isinstance(label, int) and 0 <= label < len(known):
                found[at] = known[label]
        return found

    numbered = ((number, values(row)) for number, row in enumerate(itertools.chain([first], rows)))
    return _tabulate(Table(name, names, len(names), numbered), options, look_ahead(numbered, KIND_ROWS))


def _tabulate(table: Table, options: CSVOptions, ahead: list[Row]) -> tuple[Table, Layout]:
    if not ahead:
        raise DataError(f'{table.name} is empty')
    layout = find_layout(table, options, ahead)
    table.sample = ahead[:KIND_ROWS]
    table.rows = itertools.chain(drain(ahead), table.rows)
    return table, layout


def _keep_encoded(dataset: Any) -> Any:
    """The data set without the decoding of its images: their files are what is kept."""
    for column, feature in (getattr(dataset, 'features', None) or {}).items():
        if type(feature).__name__ == 'Image' and getattr(feature, 'decode', False):
            dataset = dataset.cast_column(column, type(feature)(decode=False))
    return dataset


def _open_parquet(path: Path) -> tuple[list[str], Iterator[Any]]:
    import pyarrow.parquet as pq

    # page by page: a row group may be as large as the file
    file = pq.ParquetFile(path, memory_map=True, pre_buffer=False, buffer_size=1 << 20)
    return list(file.schema_arrow.names), _decode(file)


def _decode(file: Any) -> Iterator[Any]:
    # what rows take in the file says little of what they take in memory, so the first one is measured alone
    for batch in file.iter_batches(1, use_threads=False):
        yield batch
        size = sum(map(_decoded_size, batch.columns))
        file.reader.set_batch_size(min(MAX_DECODED_ROWS, _rows_of_batch(size, len(batch))))


def _decoded_size(array: Any) -> int:
    import pyarrow as pa

    return int(array.indices.nbytes if pa.types.is_dictionary(array.type) else array.nbytes)


def _open_arrow(path: Path) -> tuple[list[str], Iterator[Any]]:
    import pyarrow as pa

    mapped = pa.memory_map(str(path))
    try:
        file = pa.ipc.open_file(mapped)
        batches: Iterable[Any] = (file.get_batch(number) for number in range(file.num_record_batches))
    except pa.ArrowInvalid:
        mapped.seek(0)
        file = batches = pa.ipc.open_stream(mapped)
    return list(file.schema.names), _cut(batches)


def _cut(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        rows = _rows_of_batch(batch.nbytes, len(batch))
        for start in range(0, len(batch), rows):
            yield batch.slice(start, rows)


def _rows_of_batch(size: int, rows: int) -> int:
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * rows // max(size, 1)))


def _numbered(batches: Iterator[Any], name: str) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            for values in zip(*map(_values, batch.columns), strict=True):
                yield number, values
                number += 1
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f'{name}, row {number}: it cannot be read: {error}') from error


def _values(array: Any) -> Iterable[Any]:
    """A column's values; lists of numbers are arrays that share its memory. What rows share is not copied for each."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _values(array.storage)
    if pa.types.is_dictionary(kind) and not _is_shared(kind.value_type):
        return _look_up(array)
    if _is_shared(kind):
        return (value.as_py() for value in array)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not _is_numeric(kind.value_type):
        return list(array.to_pylist())
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    numbers = array.flatten()
    if numbers.null_count:
        return list(array.to_pylist())
    ends = np.cumsum(lengths)
    flat = numbers.to_numpy(zero_copy_only=False)
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    return [
        flat[end - length : end] if given else None
        for end, length, given in zip(ends.tolist(), lengths.tolist(), valid, strict=True)
    ]


def _look_up(array: Any) -> Iterator[Any]:
    indices = array.indices.dictionary_encode()
    known = list(_values(array.dictionary.take(indices.dictionary)))
    return (None if place is None else known[place] for place in indices.indices.to_pylist())


@functools.lru_cache
def _is_shared(kind: Any) -> bool:
    """Whether several rows of an array of this type may have one value that is in memory once."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _is_shared(kind.storage_type)
    types = pa.types
    return (
        types.is_dictionary(kind)
        or types.is_run_end_encoded(kind)
        or types.is_string_view(kind)
        or types.is_binary_view(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
        or any(_is_shared(kind.field(number).type) for number in range(kind.num_fields))
    )


def _is_numeric(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
