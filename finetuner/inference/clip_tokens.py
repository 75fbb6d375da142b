"""Texts to token ids for the text side of CLIP, without torch: cleaning in Python, the rest by the tokenizers library.

`SimpleTokenizer`, which most models of open_clip use, is written in Python. :func:`simple_tokenizer` builds from its
vocabulary a tokenizer for the tokenizers library. Both give the same ids, cleaning included, for all characters that
were in Unicode 14; of younger ones the two libraries may disagree whether they are letters.
"""

from __future__ import annotations

import hashlib
import html
import json
import string
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from finetuner.inference.layout import read_json
from finetuner.inference.preprocessing import Modality

TOKENIZER_FILE = 'tokenizer.json'
Cleaning = Literal['none', 'lower', 'whitespace', 'canonicalize']

_START, _END = '<start_of_text>', '<end_of_text>'
# only the literals ignore case: folding the classes too would let letters match as what they are not
_PATTERN = rf"(?i:{_START}|{_END}|'s|'t|'re|'ve|'m|'ll|'d)|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}\x{{345}}]+"
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)


class ClipTextPreprocessor:
    """Texts to token ids, as the library of the model makes them.

    :param tokenizer: adds the special tokens; is given the length limit, and must not be changed by others.
    :param max_length: the longest result in tokens, special ones included; the rest of a text is cut off.
    :param pad_id: the token that fills up the shorter texts of a batch.
    :param cleaning: what comes before: `none`; `lower`, `whitespace` or `canonicalize` as open_clip names them.
    :param literals: tokens that stand for themselves where a text spells them out, and that the tokenizer would split.
    :param erased_id: a token that is replaced by the id 0, where a model was trained that way.
    :param fixed_length: every text is filled up to `max_length`, and the model reads the padding as it reads tokens.
    :raises ValueError: the cleaning is unknown.
    """

    modality: Modality = 'text'

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        pad_id: int,
        cleaning: Cleaning = 'none',
        literals: Sequence[str] = (),
        erased_id: int | None = None,
        fixed_length: bool = False,
    ):
        if cleaning not in get_args(Cleaning):
            raise ValueError(f'unknown cleaning {cleaning!r}: it is one of {", ".join(get_args(Cleaning))}')
        if cleaning != 'none':
            import ftfy  # noqa: F401  here, so that its absence shows when the model is loaded
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.pad_id = pad_id
        self.cleaning = cleaning
        self.literals = tuple(literals)
        self.erased_id = erased_id
        self.fixed_length = fixed_length

    @classmethod
    def load(cls, directory: Path) -> ClipTextPreprocessor:
        """Read what :meth:`save` wrote, and the settings from `encoder.json`.

        :raises ValueError: a file is missing or not valid.
        """
        path, settings = directory / TOKENIZER_FILE, read_json(directory / 'encoder.json').get('preprocess')
        try:
            return cls(Tokenizer.from_file(str(path)), **settings)
        except Exception as error:  # the tokenizers library raises bare exceptions
            raise ValueError(f'{path} or the settings beside it are not valid: {error}') from error

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`; :attr:`settings` belong into `encoder.json`, as `preprocess`."""
        (directory / TOKENIZER_FILE).write_text(self._tokenizer.to_str(pretty=True), encoding='utf-8')

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the constructor besides the tokenizer, as plain values."""
        return {
            'max_length': self.max_length,
            'pad_id': self.pad_id,
            'cleaning': self.cleaning,
            'literals': list(self.literals),
            'erased_id': self.erased_id,
            'fixed_length': self.fixed_length,
        }

    @cached_property
    def digest(self) -> str:
        content = self._tokenizer.to_str() + json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def features(self, contents: Sequence[str]) -> list[np.ndarray]:
        """Token ids, int32 [T] of each text, T at most `max_length`; just that for models of fixed length."""
        texts = [clean(text, self.cleaning) for text in contents]
        rows = [np.array(encoding.ids, np.int32) for encoding in self._tokenizer.encode_batch_fast(texts)]
        for position, text in enumerate(texts):
            if any(literal in text for literal in self.literals):
                rows[position] = self._with_literals(text)
        if self.erased_id is not None:
            rows = [np.where(row == self.erased_id, 0, row).astype(np.int32) for row in rows]
        if self.fixed_length:
            rows = [np.pad(row, (0, self.max_length - len(row)), constant_values=self.pad_id) for row in rows]
        return rows

    def collate(self, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Fill up the shorter texts on the right: `input_ids` and `attention_mask`, int64 [B, T]."""
        shape = (len(rows), max((1, *(len(row) for row in rows))))
        ids, mask = np.full(shape, self.pad_id, np.int64), np.zeros(shape, np.int64)
        for position, row in enumerate(rows):
            ids[position, : len(row)] = row
            mask[position, : len(row)] = 1
        return {'input_ids': ids, 'attention_mask': mask}

    def _with_literals(self, text: str) -> np.ndarray:
        pieces = self._tokenizer.pre_tokenizer.pre_tokenize_str(text)
        special = {literal: self._tokenizer.token_to_id(literal) or 0 for literal in self.literals}
        start, end = self._tokenizer.encode('').ids
        ids: list[int] = []
        for _, (first, last) in pieces:
            piece = text[first:last]
            encoded = self._tokenizer.encode(piece, add_special_tokens=False).ids
            ids.extend([special[piece]] if piece in special else encoded)
        return np.array([start, *ids[: self.max_length - 2], end], np.int32)


def clean(text: str, cleaning: Cleaning) -> str:
    """What open_clip does to a text before it splits it."""
    if cleaning == 'none':
        return text
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if cleaning == 'canonicalize':
        text = text.strip().replace('_', ' ').translate(_NO_PUNCTUATION).lower()
    text = ' '.join(text.split())
    return text.lower() if cleaning == 'lower' else text


def simple_tokenizer(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """open_clip's `SimpleTokenizer` for the tokenizers library, without the cleaning.

    :param vocabulary: its `encoder`.
    :param merges: its pairs, by rank.
    """
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=list(merges),
            continuing_subword_prefix='',
            end_of_word_suffix='</w>',
            fuse_unk=False,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior='removed', invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f'{_START} $A {_END}', special_tokens=[(token, vocabulary[token]) for token in (_START, _END)]
    )
    return tokenizer


LITERALS = (_START, _END)
"""The special tokens of `SimpleTokenizer`."""
