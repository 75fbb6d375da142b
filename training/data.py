"""Examples on disk: features and content keys are memory-mapped, only labels and scores are held in memory."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetuner.excepts import DataError
from finetuner.inference.encoder import Encoder
from training.progress import Progress, Reporter
from training.rows import Rows, RowsWriter

if TYPE_CHECKING:
    from registry.shards import DatasetReader

PREPARE_ROWS = 256  # texts may be long, and a tokenizer keeps 100 bytes for each token before it cuts them


@dataclass(frozen=True, eq=False)
class Store:
    """The features of all items that one encoder reads.

    :param features: one row for every item.
    :param keys: uint64 [M], memory-mapped: items of equal keys have equal content.
    """

    features: Rows
    keys: np.ndarray

    @classmethod
    def open(cls, directory: Path) -> Store:
        return cls(Rows(directory), np.memmap(_keys_file(directory), np.uint64, 'r'))


@dataclass(frozen=True, eq=False)
class Column:
    """One input of every example.

    :param encoder: which encoder reads it: 'model', 'clip-text' or 'clip-vision'.
    :param store: where its items are, among those of other columns for the same encoder.
    :param position: of this column among those.
    :param stride: how many columns are in the store.
    """

    encoder: str
    store: Store
    position: int = 0
    stride: int = 1

    def __len__(self) -> int:
        return len(self.store.features) // self.stride

    def items(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the items in the store, int64 [B]."""
        return rows * self.stride + self.position


@dataclass(frozen=True, eq=False)
class Examples:
    """What is learned from, or evaluated on.

    :param name: what messages call the data set.
    :param columns: one for items; anchors and positives; queries, positives and negatives.
    :param labels: class number of every example, int32 [N]; classes are numbered in the order in which they appear.
        Pairs without labels have the number of their group: pairs that share an item, directly or through others,
        are of one group. None for other data without labels.
    :param classes: the labels, by class number; empty for groups.
    :param scores: float32 [N], None without.
    :param reader: the contents, for people to look at.
    """

    name: str
    columns: tuple[Column, ...]
    labels: np.ndarray | None
    classes: list[str]
    scores: np.ndarray | None
    reader: DatasetReader

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def class_count(self) -> int:
        return len(self.classes) or (0 if self.labels is None else int(self.labels.max()) + 1)

    def titles(self, rows: Sequence[int] | np.ndarray, column: int = 0) -> list[str]:
        """The contents of a column for people: texts, or where the files are."""
        return self.reader.titles(column, rows)

    def labels_as(self, classes: Sequence[str]) -> np.ndarray:
        """The labels numbered as in another data set; labels that it lacks come after its own. int32 [N].

        :raises DataError: the data has no labels.
        """
        if self.labels is None or not self.classes:
            raise DataError(f'{self.name} has no labels')
        numbers = {label: number for number, label in enumerate(classes)}
        renumbered = [numbers.setdefault(label, len(numbers)) for label in self.classes]
        return np.array(renumbered, np.int32)[self.labels]


def prepare(reader: DatasetReader, encoders: Mapping[str, Encoder], directory: Path, report: Reporter) -> None:
    """Turn every content into features once, into files in `directory` for `open_examples`. Memory stays constant.

    :raises DataError: the contents are of a kind that the model does not read, or one cannot be read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = match_encoders(reader, encoders)
    for encoder in dict.fromkeys(names):
        columns = [position for position, name in enumerate(names) if name == encoder]
        _write_store(reader, columns, encoders[encoder], directory / encoder, report)
    if reader.shape == 'pairs' and not reader.labelled:
        np.save(directory / 'groups.npy', _group(open_columns(names, directory)))
    (directory / 'columns.json').write_text(json.dumps(names))


def open_examples(reader: DatasetReader, directory: Path) -> Examples:
    """The examples that `prepare` made of the same data."""
    columns = open_columns(json.loads((directory / 'columns.json').read_text()), directory)
    labels, classes = reader.labels() if reader.labelled else (None, [])
    if (groups := directory / 'groups.npy').is_file():
        labels = np.load(groups)
    return Examples(reader.name, columns, labels, classes, reader.scores() if reader.scored else None, reader)


def open_columns(encoders: Sequence[str], directory: Path) -> tuple[Column, ...]:
    stores = {encoder: Store.open(directory / encoder) for encoder in set(encoders)}
    return tuple(
        Column(encoder, stores[encoder], list(encoders[:position]).count(encoder), list(encoders).count(encoder))
        for position, encoder in enumerate(encoders)
    )


def match_encoders(reader: DatasetReader, encoders: Mapping[str, Encoder]) -> list[str]:
    """Which encoder reads each column.

    :raises DataError: a column's contents are of a kind that no encoder reads.
    """
    by_modality: dict[str, str] = {encoder.modality: name for name, encoder in encoders.items()}
    for column, modality in enumerate(reader.modalities):
        if modality not in by_modality:
            where = f', column {column + 1},' if len(reader.modalities) > 1 else ''
            raise DataError(
                f'{reader.name}{where} holds {modality}s, and the model reads {"s and ".join(by_modality)}s'
            )
    return [by_modality[modality] for modality in reader.modalities]


def _write_store(
    reader: DatasetReader, columns: list[int], encoder: Encoder, directory: Path, report: Reporter
) -> None:
    start, stage = time.perf_counter(), f'Preparing {reader.name}'
    with ExitStack() as stack:
        keys = stack.enter_context(_keys_file(directory).open('wb'))
        rows: RowsWriter | None = None
        for first, stop in reader.spans(PREPARE_ROWS):
            # all columns of one example, then those of the next: see Column.items
            by_column = [reader.contents(column, first, stop) for column in columns]
            contents = [content for example in zip(*by_column, strict=True) for content in example]
            try:
                features = encoder.preprocessor.features(contents)
            except DataError as error:
                raise DataError(f'{reader.name}: {_place(str(error), first, len(columns))}') from error
            if rows is None:
                rows = stack.enter_context(RowsWriter(directory, features[0].dtype, features[0].shape[1:]))
            rows.append(features)
            # of what a path names, not of the path: the file may change
            named = [
                feature if isinstance(content, str) and encoder.modality != 'text' else content
                for content, feature in zip(contents, features, strict=True)
            ]
            np.array([content_key(content) for content in named], np.uint64).tofile(keys)
            rate = stop / (time.perf_counter() - start)
            report(Progress(stage, stop, len(reader), samples_per_second=rate, eta=(len(reader) - stop) / rate))


def _keys_file(directory: Path) -> Path:
    return directory.with_name(f'{directory.name}.keys.u64')


def _place(message: str, first: int, columns: int) -> str:
    """`item 7 …` of a batch as the document that it is in."""
    word, _, rest = message.partition(' ')
    number, _, rest = rest.partition(' ')
    if word != 'item' or not number.isdigit():
        return message
    return f'document {first + int(number) // columns} {rest}'


def content_key(content: str | bytes | np.ndarray) -> int:
    """64 bits of a digest of the content."""
    if isinstance(content, str):
        content = content.encode('utf-8', 'surrogatepass')
    elif isinstance(content, np.ndarray):
        content = repr(content.shape).encode() + np.ascontiguousarray(content).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), 'little')


def _group(columns: tuple[Column, ...]) -> np.ndarray:
    """Number the groups of pairs that hang together, int32 [N]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = np.arange(len(columns[0]))
    keys = [column.store.keys[column.items(rows)] for column in columns]
    if columns[0].encoder != columns[1].encoder:  # a text is no image, whatever their digests
        keys[1] = ~keys[1]
    nodes = np.unique(np.concatenate(keys), return_inverse=True)[1].reshape(2, -1)
    graph = coo_array((np.ones(len(rows), bool), (nodes[0], nodes[1])), shape=(nodes.max() + 1,) * 2)
    groups = connected_components(graph, directed=False)[1][nodes[0]]
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers].astype(np.int32)


def distinct(columns: Sequence[Column], rows: np.ndarray) -> Iterator[tuple[str, np.ndarray, list[Any]]]:
    """The distinct items of a batch, encoder by encoder.

    :returns: for every encoder its name, the items [U], and for every column [number, where each row's item is [B]].
    """
    for encoder in dict.fromkeys(column.encoder for column in columns):
        mine = [(number, column) for number, column in enumerate(columns) if column.encoder == encoder]
        items = np.concatenate([column.items(rows) for _, column in mine])
        _, first, inverse = np.unique(mine[0][1].store.keys[items], return_index=True, return_inverse=True)
        places = inverse.reshape(len(mine), len(rows))
        yield encoder, items[first], [(number, places[place]) for place, (number, _) in enumerate(mine)]
