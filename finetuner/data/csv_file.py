"""Reading training data from CSV files: row by row, in constant memory, with errors that name the place."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import itertools
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from finetuner.excepts import DataError

if TYPE_CHECKING:
    from finetuner.documents import Document

DELIMITERS = ',\t;|'  # the first wins a tie
SNIFFED_CHARACTERS = 64 * 1024
SNIFFED_ROWS = 10_000
MAX_CELL = 16 << 20  # characters
HEADER_NAMES = frozenset({
    'text', 'sentence', 'utterance', 'query', 'question', 'content', 'document', 'title', 'description', 'message',
    'body', 'phrase', 'input', 'label', 'labels', 'category', 'class', 'intent', 'target', 'topic', 'tag', 'group',
    'finetuner_label',
})  # fmt: skip
SENTENCE_MARKS = re.compile(r'[.?!,;"\n]')

Row = tuple[int, list[str]]  # the line at which the row begins, its cells


@dataclass
class CSVOptions:
    """How to read a CSV file.

    :param size: stop after so many rows; None reads all.
    :param sampling_rate: keep each row with this probability, 0 to 1; None keeps all.
    :param dialect: 'auto' finds the delimiter among comma, tab, semicolon and bar (comma if in doubt); else the name of
        a dialect of Python's `csv` ('excel', 'excel-tab', 'unix'), or a `csv.Dialect`.
    :param encoding: of the file. A byte order mark at its start is skipped.
    :param is_labeled: None and True read two columns as content and label.
    :param header: whether the first row names the columns. None finds out: it does if its cells look like names (at
        most three words each, no punctuation, no number), its label occurs in no other of the first 10,000 rows, and
        a cell is a usual name ('text', 'label', 'category', ...) or the labels of those rows occur twice on average.
    :param seed: of the sampling.
    :raises DataError: an option has no valid value.
    """

    size: int | None = None
    sampling_rate: float | None = None
    dialect: str | csv.Dialect | type[csv.Dialect] = 'auto'
    encoding: str = 'utf-8'
    is_labeled: bool | None = None
    _: KW_ONLY
    header: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size is not None:
            if self.size != int(self.size) or self.size < 1:
                raise DataError(f'CSVOptions.size is {self.size}: give a whole number from 1, or None for all rows')
            self.size = int(self.size)
        if self.sampling_rate is not None and not 0 <= self.sampling_rate <= 1:
            raise DataError(f'CSVOptions.sampling_rate is {self.sampling_rate}: it must lie between 0 and 1')
        if isinstance(self.dialect, str) and self.dialect not in ('auto', *csv.list_dialects()):
            known = ', '.join(['auto', *csv.list_dialects()])
            raise DataError(f'CSVOptions.dialect {self.dialect!r} is unknown: choose one of {known}')
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise DataError(f'CSVOptions.encoding {self.encoding!r} is unknown to Python') from None


def read_csv(
    source: str | Path | TextIO, options: CSVOptions | None = None, name: str | None = None
) -> Iterator[Document]:
    """Read a CSV file of two columns, content and label, as documents with `text` and `tags['finetuner_label']`.

    Rows are read while the iterator is consumed. A document's id follows from its position and content, so reading a
    file twice gives equal documents. White space around labels is removed; blank lines are skipped.

    :param source: a path, or a file opened as text (which stays open).
    :param options: how to read it; default `CSVOptions()`.
    :param name: what errors call the source; default its path.
    :raises DataError: at once if there is no such file; while reading for a malformed row, naming file, line, column.
    """
    options = options or CSVOptions()
    if options.is_labeled is False:
        raise DataError(
            'CSVOptions(is_labeled=False), pairs of texts, is not supported yet: give two columns, content and label'
        )
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.is_file():
            what = 'is a folder, not a CSV file' if path.is_dir() else 'does not exist'
            raise DataError(f'the file {path} {what} (working folder: {Path.cwd()})')
        return _read_path(path, options, name or str(path))
    return _read_stream(source, options, name or str(getattr(source, 'name', '<stream>')))


def _read_path(path: Path, options: CSVOptions, name: str) -> Iterator[Document]:
    try:
        with path.open(encoding=options.encoding, newline='') as file:
            yield from _read_stream(file, options, name)
    except UnicodeDecodeError as error:
        raise DataError(_describe_undecodable(path, options.encoding, name, error)) from error


def _read_stream(file: TextIO, options: CSVOptions, name: str) -> Iterator[Document]:
    from docarray.typing import ID

    from finetuner.documents import LABEL, Document

    rows = _parse(file, options, name)
    ahead = list(itertools.islice(rows, 2 if options.header is not None else SNIFFED_ROWS))
    if not ahead:
        raise DataError(f'{name} is empty')
    if options.header or (options.header is None and _is_header(ahead)):
        if len(ahead) == 1:
            raise DataError(f'{name} has a header ({", ".join(ahead[0][1])}) and no rows')
        del ahead[0]

    chance = random.Random(options.seed)
    kept = 0
    for position, (line, cells) in enumerate(itertools.chain(_drain(ahead), rows)):
        text, label = _check_row(cells, line, name)
        if options.sampling_rate is not None and chance.random() >= options.sampling_rate:
            continue
        identity = hashlib.blake2b(f'{position}\0{text}\0{label}'.encode('utf-8', 'surrogatepass'), digest_size=16)
        yield Document(id=ID(identity.hexdigest()), text=text, tags={LABEL: label})
        kept += 1
        if kept == options.size:
            return


def _drain(rows: list[Row]) -> Iterator[Row]:
    """The rows in order, each released once it is handed out."""
    rows.reverse()
    while rows:
        yield rows.pop()


def _parse(file: TextIO, options: CSVOptions, name: str) -> Iterator[Row]:
    """Rows with at least one filled cell."""
    csv.field_size_limit(MAX_CELL)  # of the whole process: csv knows no other
    lines = _text_lines(file, name)
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


def _text_lines(file: TextIO, name: str) -> Iterator[str]:
    for number, line in enumerate(file):
        if not isinstance(line, str):
            raise DataError(f"{name} is opened in binary mode: open it with open(path, newline='', encoding='utf-8')")
        yield line.removeprefix('\ufeff') if number == 0 else line


def _take(lines: Iterable[str], characters: int) -> list[str]:
    taken = []
    for line in lines:
        taken.append(line)
        characters -= len(line)
        if characters <= 0:
            break
    return taken


def _find_dialect(lines: list[str]) -> type[csv.Dialect]:
    """The delimiter that cuts most rows of the sample into two cells."""

    def share_of_pairs(delimiter: str) -> float:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
        complete = rows[:-1] or rows  # a sample may end within a quoted cell
        return sum(len(row) == 2 for row in complete) / max(len(complete), 1)

    try:
        best = max(DELIMITERS, key=share_of_pairs)
    except csv.Error:  # such as an open quote that swallows the sample: the strict reader names its line
        best = ','

    class Found(csv.excel):
        delimiter = best

    return Found


def _is_header(rows: list[Row]) -> bool:
    first = [cell.strip() for cell in rows[0][1]]
    if len(first) != 2 or not all(_looks_like_name(cell) for cell in first):
        return False
    labels = [cells[1].strip() for _, cells in rows[1:] if len(cells) == 2]
    if first[1] in labels:
        return False
    return any(cell.lower() in HEADER_NAMES for cell in first) or 0 < 2 * len(set(labels)) <= len(labels)


def _looks_like_name(cell: str) -> bool:
    if not cell or len(cell.split()) > 3 or SENTENCE_MARKS.search(cell):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


def _check_row(cells: list[str], line: int, name: str) -> tuple[str, str]:
    if len(cells) != 2:
        columns = f'{len(cells)} column{"s" * (len(cells) != 1)}'
        raise DataError(
            f'{name}, line {line}: {columns} where two are expected, content and label. Put text that contains the '
            f'delimiter in quotes, or set CSVOptions(dialect=...). The row begins {",".join(cells)[:60]!r}'
        )
    text, label = cells[0], cells[1].strip()
    if not text.strip():
        raise DataError(f'{name}, line {line}, column 1: the text is empty (label {label!r})')
    if not label:
        raise DataError(f'{name}, line {line}, column 2: the label is empty (text {text[:60]!r})')
    return text, label


def _describe_undecodable(path: Path, encoding: str, name: str, error: UnicodeDecodeError) -> str:
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
