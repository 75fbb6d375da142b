"""Labelled texts on disk: their Arrow shards and tokens are memory-mapped, only class numbers are held in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from finetuner.data import CSVOptions, read_csv
from finetuner.excepts import DataError
from registry.shards import open_shards, write_shard
from training.progress import Progress, Reporter

SCRATCH = 'work'  # the folder, in that of the run, of files that are needed on the way only
TOKENISE_ROWS = 256  # texts may be long, and a tokenizer keeps 100 bytes for each token before it cuts them


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts with a class each.

    :param name: what messages call the data set.
    :param table: the memory-mapped rows, columns `text`, `label` and others.
    :param labels: class number of every row, int32 [N]; classes are numbered in the order in which they appear.
    :param classes: the labels, by class number.
    """

    name: str
    table: pa.Table
    labels: np.ndarray
    classes: list[str]

    @classmethod
    def from_shards(cls, paths: Sequence[Path], name: str) -> LabelledTexts:
        """:raises DataError: a row has no text or no label; the message names the first."""
        table = open_shards(paths)
        for column in ('text', 'label'):
            if table[column].null_count:
                row = pc.index(pc.is_null(table[column]), True).as_py()
                raise DataError(f'{name}: document {row} (id {table["id"][row].as_py()!r}) has no {column}')
        encoded = table['label'].dictionary_encode().combine_chunks()
        return cls(name, table, encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist())

    @classmethod
    def from_csv(cls, path: Path, directory: Path, options: CSVOptions | None = None) -> LabelledTexts:
        """Convert a CSV file to a shard in `directory`, in constant memory.

        :raises DataError: a row is malformed; the message names the file and the line.
        """
        directory.mkdir(parents=True, exist_ok=True)
        shard = directory / f'{path.stem}.arrow'
        write_shard(read_csv(path, options), shard)
        return cls.from_shards([shard], str(path))

    def __len__(self) -> int:
        return len(self.table)

    def texts(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        column = self.table['text']
        return [column[int(row)].as_py() for row in rows]

    def labels_as(self, classes: Sequence[str]) -> np.ndarray:
        """The labels numbered as in another data set; labels that it lacks come after its own. int32 [N]."""
        numbers = {label: number for number, label in enumerate(classes)}
        renumbered = [numbers.setdefault(label, len(numbers)) for label in self.classes]
        return np.array(renumbered, np.int32)[self.labels]


class TokenRows:
    """Tokenised texts in two memory-mapped files: all tokens in a row (int32), and where each text begins (int64)."""

    def __init__(self, directory: Path, pad_id: int):
        self.tokens = np.memmap(directory / 'tokens.i32', np.int32, 'r')
        self.offsets = np.memmap(directory / 'offsets.i64', np.int64, 'r')
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of each of the rows, int64 [B]."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def padded(self, rows: np.ndarray, device: torch.device | str = 'cpu') -> tuple[torch.Tensor, torch.Tensor]:
        """The rows as `input_ids` and `attention_mask`, both int64 [B, L], L being the longest row's length."""
        lengths = self.lengths(rows)
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask] = np.concatenate([self.tokens[self.offsets[row] : self.offsets[row + 1]] for row in rows])
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)


@dataclass(frozen=True, eq=False)
class TokenisedTexts(LabelledTexts):
    """Labelled texts with their tokens."""

    tokens: TokenRows


def tokenise(
    texts: LabelledTexts, tokenizer: Any, max_length: int, directory: Path, report: Reporter
) -> TokenisedTexts:
    """Tokenise every text once, cut to `max_length` tokens, into files in `directory`. Memory stays constant."""
    directory.mkdir(parents=True, exist_ok=True)
    start, stage = time.perf_counter(), f'Tokenising {texts.name}'
    with (directory / 'tokens.i32').open('wb') as tokens, (directory / 'offsets.i64').open('wb') as offsets:
        end = 0
        np.int64(end).tofile(offsets)
        for first in range(0, len(texts), TOKENISE_ROWS):
            batch = texts.table['text'].slice(first, TOKENISE_ROWS).to_pylist()
            rows = tokenizer(batch, truncation=True, max_length=max_length, return_attention_mask=False)['input_ids']
            np.concatenate([np.array(row, np.int32) for row in rows]).tofile(tokens)
            ends = end + np.cumsum([len(row) for row in rows])
            ends.astype(np.int64).tofile(offsets)
            end = int(ends[-1])
            done, seconds = first + len(rows), time.perf_counter() - start
            rate = done / seconds
            report(Progress(stage, done, len(texts), samples_per_second=rate, eta=(len(texts) - done) / rate))
    return TokenisedTexts(
        texts.name, texts.table, texts.labels, texts.classes, TokenRows(directory, tokenizer.pad_token_id)
    )
