"""The one way in: files, data sets and documents become documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from finetuner.data.columnar import open_columnar, open_dataset
from finetuner.data.csv_file import describe_undecodable, open_csv
from finetuner.data.documents import check_documents, make_documents
from finetuner.data.json_lines import open_json_lines
from finetuner.data.links import Links
from finetuner.data.options import CSVOptions
from finetuner.data.table import Layout, Table
from finetuner.excepts import DataError

if TYPE_CHECKING:
    from finetuner.documents import Document

CSV_SUFFIXES = ('.csv', '.tsv', '.txt')
JSON_SUFFIXES = ('.jsonl', '.ndjson')
COLUMNAR_SUFFIXES = ('.parquet', '.arrow')
SUFFIXES = (*CSV_SUFFIXES, *JSON_SUFFIXES, *COLUMNAR_SUFFIXES)

ACCEPTED = (
    'give the path of a CSV, JSONL, Parquet or Arrow file, a file opened as text, a data set of the library '
    "`datasets`, or Documents with a text, blob, tensor or chunks and, for labelled data, tags['finetuner_label']"
)

Opener = Callable[[TextIO, CSVOptions, str, Path | None], tuple[Table, Layout]]


def read_data(
    source: Any,
    options: CSVOptions | None = None,
    name: str | None = None,
    task: str | None = None,
    links: Links | None = None,
) -> Iterator[Document]:
    """Read training data, row by row while the iterator is consumed, as documents.

    An item is a document with one content; a pair or a triplet is one with two or three chunks. Labels are in
    `tags['finetuner_label']`, scores and margins in `tags['finetuner_score']`. Reading twice gives equal documents.

    :param source: a path (.csv, .tsv, .txt, .jsonl, .ndjson, .parquet, .arrow), a file opened as text, a data set of
        the library `datasets`, or documents.
    :param options: how to read it; default `CSVOptions()`.
    :param name: what errors call the source; default its path.
    :param task: what the model that is to learn does, such as 'text-to-image': it decides what a column is in doubt.
    :param links: how paths and URLs in the data are read; default any, below the folder of the file.
    :raises DataError: at once if there is no such file, or `source` is nothing of these; while reading for a malformed
        row, naming source, row and column.
    """
    options, links = options or CSVOptions(), links or Links()
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.is_file():
            what = 'is a folder, not a file' if path.is_dir() else 'does not exist'
            raise DataError(f'the file {path} {what} (working folder: {Path.cwd()})')
        return _read_path(path, options, name or str(path), task, links)
    if hasattr(source, 'read'):
        stream_name = str(getattr(source, 'name', '<stream>'))
        is_json = (name or stream_name).lower().endswith(JSON_SUFFIXES)
        opener: Opener = open_json_lines if is_json else open_csv
        folder = Path(stream_name).parent if Path(stream_name).is_file() else None
        return _read(lambda: opener(source, options, name or stream_name, folder), options, task, links)
    if isinstance(source, dict) and hasattr(source, 'column_names'):
        splits = list(source)
        raise DataError(
            f'{name or "the data"} has the splits {", ".join(splits)}: give one of them, such as data[{splits[0]!r}]'
            if splits
            else f'{name or "the data"} has no splits'
        )
    if hasattr(source, 'column_names') and isinstance(source, Iterable):
        return _read(lambda: open_dataset(source, options, name or 'the data set'), options, task, links)
    if isinstance(source, dict) or not isinstance(source, Iterable):
        raise DataError(f'{name or "the data"} is of type {type(source).__name__}: {ACCEPTED}')
    return check_documents(source, options, name or 'the data', task, links, ACCEPTED)


def read_csv(
    source: str | Path | TextIO, options: CSVOptions | None = None, name: str | None = None
) -> Iterator[Document]:
    """As :func:`read_data`, of a CSV file whatever its ending."""
    options = options or CSVOptions()
    if not isinstance(source, str | Path):
        return read_data(source, options, name)
    path = Path(source).expanduser()
    if not path.is_file():
        return read_data(path, options, name)
    return _read_path(path, options, name or str(path), None, Links(), open_csv)


def _read(
    open_table: Callable[[], tuple[Table, Layout]], options: CSVOptions, task: str | None, links: Links
) -> Iterator[Document]:
    table, layout = open_table()
    yield from make_documents(table, layout, options, links, task)


def _read_path(
    path: Path, options: CSVOptions, name: str, task: str | None, links: Links, opener: Opener | None = None
) -> Iterator[Document]:
    suffix = path.suffix.lower()
    if opener is None and suffix in COLUMNAR_SUFFIXES:
        yield from _read(lambda: open_columnar(path, options, name), options, task, links)
        return
    opener = opener or (open_json_lines if suffix in JSON_SUFFIXES else open_csv)
    try:
        with path.open(encoding=options.encoding, newline='') as file:
            table, layout = opener(file, options, name, path.parent)
            yield from make_documents(table, layout, options, links, task)
    except UnicodeDecodeError as error:
        raise DataError(describe_undecodable(path, options.encoding, name, error)) from error


def is_data_path(data: str) -> bool:
    """Whether a string means a file, by its form alone. The names of data sets have no folder and no such ending."""
    return '/' in data or Path(data).suffix.lower() in SUFFIXES
