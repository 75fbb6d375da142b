"""Reading CSV files: row by row, in constant memory, with errors that name the place."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

from finetuner.data.options import CSVOptions
from finetuner.data.table import (
    IGNORED_NAMES,
    KIND_ROWS,
    LABEL_NAMES,
    PUNCTUATION,
    SAMPLE_ROWS,
    SCORE_NAMES,
    Layout,
    Row,
    Table,
    drain,
    find_layout,
    is_number,
    look_ahead,
)
from finetuner.excepts import DataError

DELIMITERS = ',\t;|'  # the first wins a tie
SNIFFED_CHARACTERS = 64 * 1024
MAX_CELL = 16 << 20  # characters
MAX_LINE = 4 * MAX_CELL
HEADER_NAMES = LABEL_NAMES | SCORE_NAMES | (IGNORED_NAMES - {''}) | frozenset({
    'text', 'sentence', 'utterance', 'query', 'question', 'answer', 'content', 'document', 'title', 'description',
    'message', 'body', 'phrase', 'input', 'caption', 'passage', 'anchor', 'positive', 'negative', 'image', 'mesh',
    'uri', 'url', 'path', 'file', 'filename',
})  # fmt: skip
NUMBERS = {2: 'two', 3: 'three', 4: 'four'}


def open_csv(file: TextIO, options: CSVOptions, name: str, folder: Path | None = None) -> tuple[Table, Layout]:
    """The rows of a CSV file that is open, and what their columns are. A row of another width than most is an error.

    :raises DataError: the file is empty, or its columns fit no shape; while reading, a row is malformed.
    """
    rows = _parse(file, options, name)
    ahead = look_ahead(rows, SAMPLE_ROWS)
    if not ahead:
        raise DataError(f'{name} is empty')
    width = max(Counter(len(cells) for _, cells in ahead).most_common(1)[0][0], 2 if options.columns is None else 1)
    names = None
    if _has_header(ahead, width, options):
        names = [cell.strip() for cell in ahead[0][1]]
        if len(ahead) == 1:
            raise DataError(f'{name} has a header ({", ".join(names)}) and no rows')
        del ahead[0]
        width = len(names) if len(names) > 1 else width
        names = names if len(names) == width else None
    table = Table(name, names, width, iter(()), 'line', 'column', folder, is_text=True)
    complete = [row for row in ahead if len(row[1]) == width]
    layout = find_layout(table, options, complete)
    table.sample = complete[:KIND_ROWS]
    table.rows = _checked(itertools.chain(drain(ahead), rows), table, layout)
    return table, layout


def _has_header(rows: list[Row], width: int, options: CSVOptions) -> bool:
    if options.header is not None:
        return options.header
    chosen = options.chosen_columns()
    if chosen is not None:
        contents, label, score = chosen
        if any(isinstance(column, str) for column in (*contents, label, score)):
            return True
    return _is_header(rows, width)


def _checked(rows: Iterator[Row], table: Table, layout: Layout) -> Iterator[Row]:
    for line, cells in rows:
        if len(cells) != table.width:
            columns = f'{len(cells)} column{"s" * (len(cells) != 1)}'
            roles = [''] * table.width
            for column in layout.contents:
                roles[column] = 'content'
            for role in ('label', 'score'):
                if (column := getattr(layout, role)) is not None:
                    roles[column] = role
            wanted = f', {" and ".join(roles)}' if all(roles) else ''
            raise DataError(
                f'{table.place(line)}: {columns} where {NUMBERS.get(table.width, table.width)} are expected{wanted}. '
                'Put text that contains the delimiter in quotes, or set CSVOptions(dialect=...). '
                f'The row begins {",".join(map(str, cells))[:60]!r}'
            )
        yield line, cells


def _parse(file: TextIO, options: CSVOptions, name: str) -> Iterator[Row]:
    """Rows with at least one filled cell."""
    csv.field_size_limit(MAX_CELL)  # of the whole process: csv knows no other
    lines = _whole(text_lines(file, name, MAX_LINE), name)
    head = _take(lines, SNIFFED_CHARACTERS)
    dialect = _find_dialect(head) if options.dialect == 'auto' else options.dialect
    reader = csv.reader(itertools.chain(head, lines), dialect, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if 'field larger than field limit' in str(error):
                raise DataError(
                    f'{name}, line {line}: a cell is longer than {MAX_CELL >> 20} Mi characters. If it should not be, '
                    'a quote that opens it is not closed'
                ) from error
            raise DataError(
                f'{name}, line {line}: the row cannot be read ({error}). A cell that begins with a quote must end with '
                'one, and quotes inside it are doubled'
            ) from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def text_lines(file: TextIO, name: str, limit: int | None = None) -> Iterator[str]:
    """The lines of a file that is open as text, without a byte order mark.

    :param limit: characters of a line; a longer one comes in pieces of so many.
    :raises DataError: it is open in binary mode.
    """
    lines: Iterable[str] = file
    if limit is not None:
        lines = iter(partial(file.readline, limit), '')
    for number, line in enumerate(lines):
        if not isinstance(line, str):
            raise DataError(f"{name} is opened in binary mode: open it with open(path, newline='', encoding='utf-8')")
        yield line.removeprefix('\ufeff') if number == 0 else line


def _whole(lines: Iterable[str], name: str) -> Iterator[str]:
    """The lines as they are.

    :raises DataError: one is longer than any that can be held.
    """
    for number, line in enumerate(lines, 1):
        if len(line) >= MAX_LINE and not line.endswith(('\n', '\r')):
            raise DataError(f'{name}, line {number}: the line is longer than {MAX_LINE >> 20} Mi characters')
        yield line


def _take(lines: Iterable[str], characters: int) -> list[str]:
    taken = []
    for line in lines:
        taken.append(line)
        characters -= len(line)
        if characters <= 0:
            break
    return taken


def _find_dialect(lines: list[str]) -> type[csv.Dialect]:
    """The delimiter that cuts most rows of the sample into equally many cells; if in doubt, one that no space follows,
    as it does in sentences, and that makes two."""

    def fit(delimiter: str) -> tuple[float, float, bool]:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
        complete = rows[:-1] or rows  # a sample may end within a quoted cell
        widths = Counter(len(row) for row in complete if len(row) > 1)
        width, count = max(widths.items(), key=lambda item: (item[1], item[0] == 2), default=(1, 0))
        spaces = sum(cell[:1] == ' ' for row in complete for cell in row[1:])
        return count / max(len(complete), 1), -spaces / max(sum(map(len, complete)), 1), width == 2

    try:
        best = max(DELIMITERS, key=fit)
    except csv.Error:  # such as an open quote that swallows the sample: the strict reader names its line
        best = ','

    class Found(csv.excel):
        delimiter = best

    return Found


def _is_header(rows: list[Row], width: int) -> bool:
    first = [cell.strip() for cell in rows[0][1]]
    if len(first) != width or not all(_looks_like_name(cell) or (not cell and width > 2) for cell in first):
        return False
    others = [cells for _, cells in rows[1:] if len(cells) == width]
    last = [cells[-1].strip() for cells in others]
    if first[-1] in last:
        return False
    if any(_plain(cell) in HEADER_NAMES for cell in first):
        return True
    if width > 2:
        return bool(last) and all(is_number(cell) for cell in last)
    return 0 < 2 * len(set(last)) <= len(last)


def _plain(cell: str) -> str:
    """A name without the number that tells it from another, as in `sentence1`."""
    return cell.lower().rstrip('0123456789').rstrip('_- ')


def _looks_like_name(cell: str) -> bool:
    if not cell or len(cell.split()) > 3 or PUNCTUATION.search(cell):
        return False
    return not is_number(cell)


def describe_undecodable(path: Path, encoding: str, name: str, error: UnicodeDecodeError) -> str:
    """Find the line again: the reader decodes in blocks and does not know it."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    with path.open('rb') as file:
        start = file.read(2)
        file.seek(0)
        try:
            while block := file.read(io.DEFAULT_BUFFER_SIZE):
                line += decoder.decode(block).count('\n')
            decoder.decode(b'', final=True)
        except UnicodeDecodeError as found:
            line += found.object[: found.start].decode(encoding, 'ignore').count('\n')
    hint = 'utf-16' if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else 'latin-1'
    return (
        f'{name}, line {line}: the file is not {encoding} ({error.reason}). Set CSVOptions(encoding=...), '
        f'for example encoding={hint!r}'
    )
