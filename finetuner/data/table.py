"""Rows of any source, and which of their columns are contents, label and score."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetuner.data.options import Column, CSVOptions
from finetuner.excepts import DataError

logger = logging.getLogger(__name__)

LABEL_NAMES = frozenset({
    'label', 'labels', 'class', 'classes', 'category', 'categories', 'intent', 'target', 'topic', 'tag', 'group',
    'finetuner_label',
})  # fmt: skip
SCORE_NAMES = frozenset({'score', 'scores', 'similarity', 'similarity_score', 'margin', 'finetuner_score'})
IGNORED_NAMES = frozenset({'', 'id', 'idx', 'index', '_id', '__index_level_0__', 'unnamed: 0'})

SAMPLE_ROWS = 10_000
KIND_ROWS = 100
SAMPLE_SIZE = 16 << 20  # characters or bytes
FEW = 10
"""Of so few rows, how often their labels occur says nothing."""

PUNCTUATION = re.compile(r'[.?!,;"\n]')
_SHAPES = {1: 'items', 2: 'pairs', 3: 'triplets'}

Row = tuple[int, Sequence[Any]]


@dataclass
class Table:
    """What a source gives.

    :param name: what errors call it.
    :param names: of the columns, None if they have none.
    :param width: how many columns there are.
    :param rows: their numbers, as people count them, and their values; a value that is missing is None.
    :param unit: what is counted: 'line' or 'row'.
    :param part: what a column is called: 'column' or 'field'.
    :param folder: where relative paths in cells begin.
    :param is_text: whether all values are text, as in CSV files.
    :param sample: the first of the rows, to find out of which kind their contents are.
    """

    name: str
    names: list[str] | None
    width: int
    rows: Iterator[Row]
    unit: Literal['line', 'row'] = 'row'
    part: Literal['column', 'field'] = 'column'
    folder: Path | None = None
    is_text: bool = False
    sample: list[Row] = field(default_factory=list)

    def place(self, number: int, column: int | None = None) -> str:
        """How errors name a row, or a cell of it."""
        where = f'{self.name}, {self.unit} {number}'
        if column is None:
            return where
        if self.names is None or self.is_text:
            return f'{where}, {self.part} {column + 1}'
        return f'{where}, {self.part} {self.names[column]!r}'


@dataclass(frozen=True)
class Layout:
    """Which columns are what.

    :param contents: one column for items, two for pairs, three for triplets.
    """

    contents: tuple[int, ...]
    label: int | None = None
    score: int | None = None


def look_ahead(rows: Iterator[Row], count: int) -> list[Row]:
    """The next rows: at most `count`, and no more than make a decision affordable."""
    taken, size = [], 0
    for row in itertools.islice(rows, count):
        taken.append(row)
        size += sum(_size(value) for value in row[1])
        if size > SAMPLE_SIZE:
            break
    return taken


def drain(rows: list[Row]) -> Iterator[Row]:
    """The rows in order, each taken out of the list as it is handed out."""
    rows.reverse()
    while rows:
        yield rows.pop()


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(item) for item in value.values())
    if hasattr(value, 'nbytes'):
        return int(value.nbytes)
    if hasattr(value, 'size') and isinstance(value.size, tuple):  # an image of Pillow
        return 4 * math.prod(value.size)
    if isinstance(value, list | tuple):
        nested = (item for item in value if isinstance(item, str | bytes | dict | list | tuple))
        return 8 * len(value) + sum(map(_size, nested))
    return 8 * len(value) if hasattr(value, '__len__') else 8


def find_layout(table: Table, options: CSVOptions, sample: list[Row]) -> Layout:
    """What the options say, else the names, else what the first rows look like. What is found is logged.

    :param sample: rows of the table's width.
    :raises DataError: the columns fit no shape, or the chosen ones are not there.
    """
    values = [row for _, row in sample]
    layout = _chosen(table, options) if options.columns is not None else _found(table, options, values)
    if len(layout.contents) == 1 and layout.score is not None:
        raise DataError(
            f'{table.name} has one column of contents and one of scores: a score belongs to a pair or to a triplet'
        )
    logger.info('%s: %s', table.name, describe(table, layout))
    return layout


def describe(table: Table, layout: Layout) -> str:
    """In words, such as `labelled items: content in column 1, label in column 2`."""

    def of(column: int) -> str:
        return f'column {column + 1}' if table.names is None else repr(table.names[column])

    kinds = [name for name, given in (('labelled', layout.label), ('scored', layout.score)) if given is not None]
    places = [f'contents in {" and ".join(map(of, layout.contents))}']
    places += [f'{role} in {of(given)}' for role in ('label', 'score') if (given := getattr(layout, role)) is not None]
    return f'{" ".join([*kinds, _SHAPES[len(layout.contents)]])}: {", ".join(places)}'


def _chosen(table: Table, options: CSVOptions) -> Layout:
    chosen = options.chosen_columns()
    assert chosen is not None
    contents, label, score = chosen

    def find(column: Column) -> int:
        if isinstance(column, int):
            if column <= table.width:
                return column - 1
            raise DataError(f'{table.name} has {table.width} columns: there is no column {column}')
        if table.names is None or column not in table.names:
            known = 'its columns have no names' if table.names is None else f'it has {", ".join(table.names)}'
            raise DataError(f'{table.name} has no column {column!r}: {known}')
        return table.names.index(column)

    return Layout(
        tuple(find(column) for column in contents),
        None if label is None else find(label),
        None if score is None else find(score),
    )


def _found(table: Table, options: CSVOptions, rows: list[Sequence[Any]]) -> Layout:
    names = [''] * table.width if table.names is None else [name.strip().lower() for name in table.names]
    named = {role: _first(names, known) for role, known in (('label', LABEL_NAMES), ('score', SCORE_NAMES))}
    label, score = named['label'], named['score']
    if options.is_labeled is False:
        label = None
    contents = [
        column
        for column in range(table.width)
        if column not in (label, score) and (table.names is None or names[column] not in IGNORED_NAMES)
    ]
    if label is None and options.is_labeled and len(contents) > 1:
        label = contents.pop()
    if score is None and label is None and len(contents) in (3, 4) and _are_numbers(rows, contents[-1]):
        score = contents.pop()
    if label is None and score is None and options.is_labeled is None and len(contents) == 2:
        last = contents[-1]
        # a header that names it otherwise, such as 'answer', says that it is none
        if (table.names is None or names[last] not in _CONTENT_NAMES) and looks_like_labels(rows, last):
            label = contents.pop()
            if table.names is None and not _are_numbers(rows, last):
                logger.warning(
                    '%s: column 2 is taken as labels, as its values are short and repeat; if the rows are pairs, '
                    'give CSVOptions(is_labeled=False)',
                    table.name,
                )
    if score is None and label is not None and len(contents) == 2 and options.is_labeled is None:
        # sentence-transformers calls the scores of its pairs labels, too
        label, score = (None, label) if _are_similarities(rows, label) else (label, None)
    if not contents or len(contents) > 3:
        raise DataError(
            f'{table.name} has {table.width} columns{_listed(table)}, of which {len(contents)} may be contents: '
            "say which to use, CSVOptions(columns={'content': ..., 'label': ...})"
        )
    return Layout(tuple(contents), label, score)


_CONTENT_NAMES = frozenset({
    'text', 'sentence', 'document', 'answer', 'response', 'passage', 'positive', 'context', 'question', 'query',
    'image', 'caption', 'title', 'description', 'body', 'sentence2', 'text2', 'sentence_2', 'text_2',
})  # fmt: skip


def _listed(table: Table) -> str:
    return '' if table.names is None else f' ({", ".join(table.names)[:200]})'


def _first(names: list[str], known: frozenset[str]) -> int | None:
    return next((column for column, name in enumerate(names) if name in known), None)


def looks_like_labels(rows: list[Sequence[Any]], column: int) -> bool:
    """Whether the values are short names or numbers, and where there are more than a few, each occurs twice or more on
    average."""
    values = [scalar(row[column]) for row in rows]
    values = [value.strip() if isinstance(value, str) else value for value in values]
    values = [value for value in values if value is not None and not (isinstance(value, str) and not value)]
    if not all(isinstance(value, str | int | float) for value in values):
        return False
    if values and all(is_number(value) for value in values):
        return True
    names = sum(_is_name(value) for value in values)
    if names < 0.9 * len(values):
        return False
    return len(values) < FEW or 2 * len(set(values)) <= len(values)


def _is_name(value: Any) -> bool:
    return (
        not isinstance(value, str)
        or is_number(value)
        or (len(value) <= 64 and len(value.split()) <= 6 and not PUNCTUATION.search(value))
    )


def scalar(value: Any) -> Any:
    """The value, as Python's own where it is one of numpy, or a tensor without dimensions."""
    return value.item() if getattr(value, 'ndim', None) == 0 and hasattr(value, 'item') else value


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _are_numbers(rows: list[Sequence[Any]], column: int) -> bool:
    return bool(rows) and all(is_number(row[column]) for row in rows)


def _are_similarities(rows: list[Sequence[Any]], column: int) -> bool:
    return _are_numbers(rows, column) and all(0 <= float(row[column]) <= 1 for row in rows)
