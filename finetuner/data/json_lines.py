"""Reading JSONL: one object in a line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from finetuner.data.csv_file import text_lines
from finetuner.data.options import CSVOptions
from finetuner.data.table import KIND_ROWS, SAMPLE_ROWS, Layout, Row, Table, drain, find_layout, look_ahead
from finetuner.excepts import DataError

MAX_LINE = 64 << 20  # characters


def open_json_lines(file: TextIO, options: CSVOptions, name: str, folder: Path | None = None) -> tuple[Table, Layout]:
    """The rows of a JSONL file that is open; its columns are the fields of its first objects.

    :raises DataError: the file is empty, its fields fit no shape, or a line is malformed.
    """
    objects = _parse(file, name)
    ahead = look_ahead(((line, [found]) for line, found in objects), SAMPLE_ROWS)
    if not ahead:
        raise DataError(f'{name} is empty')
    names = list(dict.fromkeys(field for _, [found] in ahead for field in found))
    if not names:
        raise DataError(f'{name}: its objects have no fields')

    def row(line: int, found: dict[str, Any]) -> Row:
        return line, [found.get(field) for field in names]

    table = Table(name, names, len(names), iter(()), 'line', 'field', folder)
    sample = [row(line, found) for line, [found] in ahead]
    layout = find_layout(table, options, sample)
    table.sample = sample[:KIND_ROWS]
    first = ((line, found) for line, [found] in drain(ahead))
    table.rows = (row(line, found) for line, found in itertools.chain(first, objects))
    return table, layout


def _parse(file: TextIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(text_lines(file, name, MAX_LINE + 1), 1):
        if len(text) > MAX_LINE:
            raise DataError(f'{name}, line {line}: it is longer than {MAX_LINE >> 20} Mi characters')
        if not text.strip():
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = 'it nests too deep' if isinstance(error, RecursionError) else error
            raise DataError(f'{name}, line {line}: it is not JSON: {reason}') from error
        if not isinstance(found, dict):
            raise DataError(f'{name}, line {line}: it is {_kind(found)}, not an object {{"text": ..., "label": ...}}')
        yield line, found


def _kind(value: Any) -> str:
    return {list: 'a list', str: 'a text', bool: 'a boolean', type(None): 'null'}.get(type(value), 'a number')
