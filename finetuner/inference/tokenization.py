"""Texts to token ids with the tokenizers library alone, and from several threads at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer, normalizers

from finetuner.inference.layout import Layout, read_json
from finetuner.inference.preprocessing import Modality

_DEFAULT_LENGTH = 512


class TextTokenizer:
    """The preprocessor of texts.

    :param tokenizer: is given the length limit, and must not be changed by others.
    :param max_length: the longest result in tokens, special ones included; the rest of a text is cut off.
    :param pad_id: the token that fills up the shorter texts of a batch.
    """

    modality: Modality = 'text'

    def __init__(self, tokenizer: Tokenizer, max_length: int, pad_id: int):
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.pad_id = pad_id

    @classmethod
    def load(cls, layout: Layout) -> TextTokenizer:
        """Read `tokenizer.json` of a model directory.

        :raises ValueError: it is not there or not valid.
        """
        path = layout.transformer / 'tokenizer.json'
        if not path.is_file():
            raise ValueError(f'{layout.transformer} has no tokenizer.json')
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f'{path} is not valid: {error}') from error
        if layout.do_lower_case:
            own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        return cls(tokenizer, layout.max_length or _DEFAULT_LENGTH, _pad_id(tokenizer, layout.transformer))

    @cached_property
    def digest(self) -> str:
        """sha256 of the tokenizer with its length limit, and of the padding."""
        return hashlib.sha256(f'{self.pad_id} {self._tokenizer.to_str()}'.encode()).hexdigest()

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        return self._tokenizer.encode_batch_fast(list(texts))

    def features(self, contents: Sequence[str]) -> list[np.ndarray]:
        """The token ids of each text, int32 [T]. A text without any token becomes one token of padding."""
        encodings = self.tokenize(contents)
        return [np.array(encoding.ids or [self.pad_id], np.int32) for encoding in encodings]

    def collate(self, rows: Sequence[Encoding | np.ndarray]) -> dict[str, np.ndarray]:
        """Fill up the shorter texts on the right. A text without any token becomes one token of padding.

        :param rows: of :meth:`features` or :meth:`tokenize`.
        :return: `input_ids`, `attention_mask` and `token_type_ids`, int64 [B, T], T the longest text's length.
        """
        shape = (len(rows), max(1, *(len(row) for row in rows)))
        ids, mask, types = np.full(shape, self.pad_id), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for number, row in enumerate(rows):
            length = len(row)
            if isinstance(row, np.ndarray):
                ids[number, :length] = row
            else:
                ids[number, :length] = row.ids
                types[number, :length] = row.type_ids
            mask[number, : max(1, length)] = 1
        return {'input_ids': ids, 'attention_mask': mask, 'token_type_ids': types}


def _pad_id(tokenizer: Tokenizer, directory: Path) -> int:
    if tokenizer.padding:
        return int(tokenizer.padding['pad_id'])
    config = directory / 'config.json'
    return int((read_json(config).get('pad_token_id') if config.is_file() else None) or 0)
