"""Texts to token ids with the tokenizers library alone, and from several threads at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer, normalizers

from finetuner.inference.layout import Layout, read_json

_DEFAULT_LENGTH = 512


class TextTokenizer:
    """:param tokenizer: is given the length limit, and must not be changed by others.
    :param max_length: the longest result in tokens, special ones included; the rest of a text is cut off.
    :param pad_id: the token that fills up the shorter texts of a batch.
    """

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

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        return self._tokenizer.encode_batch_fast(list(texts))

    def collate(self, encodings: Sequence[Encoding]) -> dict[str, np.ndarray]:
        """Fill up the shorter texts on the right. A text without any token becomes one token of padding.

        :return: `input_ids`, `attention_mask` and `token_type_ids`, int64 [B, T], T the longest text's length.
        """
        shape = (len(encodings), max(1, *(len(encoding) for encoding in encodings)))
        ids, mask, types = np.full(shape, self.pad_id), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, encoding in enumerate(encodings):
            length = len(encoding)
            ids[row, :length] = encoding.ids
            types[row, :length] = encoding.type_ids
            mask[row, : max(1, length)] = 1
        return {'input_ids': ids, 'attention_mask': mask, 'token_type_ids': types}


def _pad_id(tokenizer: Tokenizer, directory: Path) -> int:
    if tokenizer.padding:
        return int(tokenizer.padding['pad_id'])
    config = directory / 'config.json'
    return int((read_json(config).get('pad_token_id') if config.is_file() else None) or 0)
