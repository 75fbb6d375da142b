"""How data is read."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

from finetuner.excepts import DataError, ParameterError

ROLES = ('content', 'label', 'score')

Column = str | int


@dataclass
class CSVOptions:
    """How to read training data: CSV files, and as far as it applies JSONL, Parquet, data sets and documents.

    :param size: stop after so many rows; None reads all.
    :param sampling_rate: keep each row with this probability, 0 to 1; None keeps all.
    :param dialect: 'auto' finds the delimiter among comma, tab, semicolon and bar (comma if in doubt); else the name of
        a dialect of Python's `csv` ('excel', 'excel-tab', 'unix'), or a `csv.Dialect`.
    :param encoding: of the file. A byte order mark at its start is skipped.
    :param is_labeled: True: one column is the label, the last if none is named so. False: there is no label, two
        columns are a pair. None finds out, see docs/data.md.
    :param convert_to_blob: read the images and meshes that cells name by path or URL; False keeps what the cells say,
        which only a training on this machine can read, and only paths.
    :param create_point_clouds: make a cloud of points of a mesh while reading; False keeps the bytes of its file.
    :param point_cloud_size: points of such a cloud.
    :param header: whether the first row names the columns. None finds out: it does if its cells look like names (at
        most three words each, no punctuation, no number), its label occurs in no other of the first 10,000 rows, and
        a cell is a usual name ('text', 'label', 'category', ...) or the labels of those rows occur twice on average.
    :param columns: which columns to use, `{'content': ..., 'label': ..., 'score': ...}`: each a column's name or its
        number from 1; `content` may be a list of two (a pair) or three (query, positive, negative). The score of a
        triplet is its margin. None takes the columns by their names and order.
    :param seed: of the sampling.
    :raises DataError: an option has no valid value.
    """

    size: int | None = None
    sampling_rate: float | None = None
    dialect: str | csv.Dialect | type[csv.Dialect] = 'auto'
    encoding: str = 'utf-8'
    is_labeled: bool | None = None
    convert_to_blob: bool = True
    create_point_clouds: bool = True
    point_cloud_size: int = 2048
    _: KW_ONLY
    header: bool | None = None
    columns: Mapping[str, Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size is not None:
            self.size = _whole('size', self.size, 1, ', or None for all rows')
        self.point_cloud_size = _whole('point_cloud_size', self.point_cloud_size, 16)
        if self.sampling_rate is not None and not 0 <= self.sampling_rate <= 1:
            raise DataError(f'CSVOptions.sampling_rate is {self.sampling_rate}: it must lie between 0 and 1')
        if isinstance(self.dialect, str) and self.dialect not in ('auto', *csv.list_dialects()):
            known = ', '.join(['auto', *csv.list_dialects()])
            raise DataError(f'CSVOptions.dialect {self.dialect!r} is unknown: choose one of {known}')
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise DataError(f'CSVOptions.encoding {self.encoding!r} is unknown to Python') from None
        self.chosen_columns()

    def chosen_columns(self) -> tuple[list[Column], Column | None, Column | None] | None:
        """The columns of the contents, of the label and of the score; None if none are chosen.

        :raises DataError: `columns` is malformed.
        """
        if self.columns is None:
            return None
        if not isinstance(self.columns, Mapping) or not set(self.columns) <= set(ROLES):
            raise DataError(f'CSVOptions.columns is {self.columns!r}: give a dict of {", ".join(map(repr, ROLES))}')
        contents = self.columns.get('content')
        contents = list(contents) if isinstance(contents, list | tuple) else [contents]
        if not 1 <= len(contents) <= 3 or None in contents:
            raise DataError("CSVOptions.columns: 'content' is one column, or a list of two or three")
        label, score = (self.columns.get(role) for role in ROLES[1:])
        return (
            [_column(column) for column in contents],
            None if label is None else _column(label),
            None if score is None else _column(score),
        )


def make_options(given: CSVOptions | Mapping[str, Any] | None) -> CSVOptions:
    """The options, also from a mapping such as JSON holds; None are the default ones.

    :raises ParameterError: it is no such thing, has an unknown name, or a value of the wrong type.
    :raises DataError: an option has no valid value.
    """
    if given is None or isinstance(given, CSVOptions):
        return given or CSVOptions()
    if not isinstance(given, Mapping):
        raise ParameterError(
            f"'csv_options' is of type {type(given).__name__}: give CSVOptions(...), or a dict of them"
        )
    known = [option.name for option in fields(CSVOptions)]
    if unknown := [name for name in given if name not in known]:
        raise ParameterError(f"'csv_options': {unknown[0]!r} is unknown: choose of {', '.join(known)}")
    try:
        return CSVOptions(**given)
    except DataError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise ParameterError(f"'csv_options': {error}") from error


def _whole(name: str, value: Any, least: int, hint: str = '') -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < least:
        raise DataError(f'CSVOptions.{name} is {value}: give a whole number from {least}{hint}')
    return int(value)


def _column(column: Any) -> Column:
    if isinstance(column, str):
        return column
    if isinstance(column, bool) or not isinstance(column, int | float) or column != int(column) or column < 1:
        raise DataError(f'CSVOptions.columns: {column!r} is neither a name nor a number from 1')
    return int(column)
