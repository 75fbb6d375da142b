"""Arrays of unequal lengths in memory-mapped files: tokens, images, points, vectors, hidden states."""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

META = 'meta.json'
OFFSETS = 'offsets.i64'
SMALL_ROW = 1024  # bytes


class Rows:
    """Row i is an array [L_i, *tail]; the rows of one directory share their dtype and tail. Nothing is held in memory.

    The directory holds `data.<dtype>`, all rows one after the other, `offsets.i64`, where each of them begins and the
    last ends, and `meta.json` with dtype and tail. Rows can be pickled: another process maps the same files.

    :raises ValueError: the directory holds no rows, or files that do not fit together.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        try:
            meta = json.loads((self.directory / META).read_text())
            self.dtype = np.dtype(meta['dtype'])
            self.tail: tuple[int, ...] = tuple(int(size) for size in meta['tail'])
            offsets = _map(self.directory / OFFSETS, np.dtype(np.int64))
            data = _map(self.directory / f'data.{self.dtype}', self.dtype)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{self.directory} holds no rows: {error}') from error
        if not len(offsets) or offsets[-1] * math.prod(self.tail) != len(data):
            raise ValueError(f'{self.directory} is not complete: its offsets and its data do not fit together')
        self.data = data.reshape(-1, *self.tail)
        self.starts, self.ends = offsets[:-1], offsets[1:]
        self.selected: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> np.ndarray:
        """A view [L, *tail] into the file, read-only."""
        if not -len(self) <= row < len(self):
            raise IndexError(f'row {row} of {len(self)}')
        return self.data[self.starts[row] : self.ends[row]]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.directory, self.selected)

    def select(self, rows: np.ndarray) -> Rows:
        """The rows of these numbers, int64 [M], in this order, repeated perhaps; nothing is copied."""
        chosen = copy.copy(self)
        chosen.starts, chosen.ends = self.starts[rows], self.ends[rows]
        chosen.selected = rows if self.selected is None else self.selected[rows]
        return chosen

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """The length of each of the rows, int64 [B]."""
        return self.ends[rows] - self.starts[rows]

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Views of the rows, [L, *tail] each."""
        starts, ends = self.starts[rows].tolist(), self.ends[rows].tolist()
        return [self.data[start:end] for start, end in zip(starts, ends, strict=True)]

    def concatenated(self, rows: np.ndarray) -> np.ndarray:
        """A copy of the rows one after the other, [sum of the lengths, *tail]."""
        starts, lengths = self.starts[rows], self.lengths(rows)
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        step = self.dtype.itemsize * math.prod(self.tail)
        if total * step <= SMALL_ROW * len(rows):  # one gather costs less than a slice for every row
            return self.data[np.arange(total) + np.repeat(starts - (ends - lengths), lengths)]
        return np.concatenate(self.take(rows))


class RowsWriter:
    """Writes a directory of rows, which appears complete or not at all. Holds only what is being appended.

    Used as a context manager: leaving it by an exception leaves nothing behind, and what was there before as it was.
    Other files that are put into `folder` meanwhile appear with the rows.

    :param directory: is made, or replaced if it is there.
    :param dtype: of all rows.
    :param tail: the shape of one step of a row: () for tokens, [H, W, 3] with rows of length 1 or [W, 3] for images.
    """

    def __init__(self, directory: str | Path, dtype: Any, tail: Sequence[int] = ()):
        self.directory = Path(directory)
        self.dtype, self.tail = np.dtype(dtype), tuple(int(size) for size in tail)
        self.count = 0
        self._end = 0

    def __enter__(self) -> RowsWriter:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f'.{self.directory.name}.', dir=self.directory.parent))
        self._data: BinaryIO = (self.folder / f'data.{self.dtype}').open('wb')
        self._offsets: BinaryIO = (self.folder / OFFSETS).open('wb')
        self._offsets.write(np.int64(0).tobytes())
        return self

    def append(self, rows: Sequence[np.ndarray]) -> None:
        """Add rows, [L, *tail] each.

        :raises ValueError: a row has another tail, or a dtype that does not convert without loss.
        """
        arrays = [np.asarray(row) for row in rows]
        for number, array in enumerate(arrays, self.count):
            if not array.ndim or array.shape[1:] != self.tail:
                raise ValueError(f'row {number} has the shape {list(array.shape)}, not [length, *{list(self.tail)}]')
            if not np.can_cast(array.dtype, self.dtype, 'same_kind'):
                raise ValueError(f'row {number} is {array.dtype}, not {self.dtype}')
        for array in arrays:
            self._data.write(np.ascontiguousarray(array, self.dtype).data)
        ends = self._end + np.cumsum([len(array) for array in arrays], dtype=np.int64)
        self._offsets.write(ends.tobytes())
        self.count += len(arrays)
        self._end = int(ends[-1]) if len(ends) else self._end

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()
        self._offsets.close()
        try:
            if kind is None:
                meta = {'dtype': str(self.dtype), 'tail': list(self.tail)}
                (self.folder / META).write_text(json.dumps(meta))
                self._replace()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _replace(self) -> None:
        """Put what was written in its place; a directory is renamed only onto an empty one, so the old goes first."""
        self.folder.chmod(0o755)
        try:
            self.folder.rename(self.directory)
        except OSError:
            if not self.directory.is_dir():
                raise
            old = Path(tempfile.mkdtemp(prefix=f'.{self.directory.name}.', dir=self.directory.parent))
            self.directory.rename(old)
            self.folder.rename(self.directory)
            shutil.rmtree(old, ignore_errors=True)


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    """The file as a flat array; a file of no bytes cannot be mapped."""
    return np.asarray(np.memmap(path, dtype, 'r')) if path.stat().st_size else np.empty(0, dtype)


def _reopen(directory: Path, selected: np.ndarray | None) -> Rows:
    rows = Rows(directory)
    return rows if selected is None else rows.select(selected)
