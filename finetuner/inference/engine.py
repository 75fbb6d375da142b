"""What every engine does: check, tokenize, sort by length, run batches, put the results in the order of the request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from finetuner.excepts import DataError

if TYPE_CHECKING:
    from finetuner.documents import Content
    from finetuner.inference.tokenization import TextTokenizer

# texts that are tokenized, and sorted among each other, at once: enough for even batches, little memory
_WINDOW = 8192

Documents = TypeVar('Documents', bound='Sequence[Content]')


class InferenceEngine(ABC):
    """A loaded model. Its methods may be called from several threads at once.

    :param tokenizer: the model's.
    :param dim: the length of an embedding.
    :param batch_size: how many texts the model is given at once, unless a call says otherwise.
    """

    def __init__(self, tokenizer: TextTokenizer, dim: int, batch_size: int):
        self.tokenizer = tokenizer
        self.dim = dim
        self.batch_size = check_batch_size(batch_size)

    @property
    def max_length(self) -> int:
        """The longest text in tokens, special ones included; the rest is cut off."""
        return self.tokenizer.max_length

    @abstractmethod
    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Embed one batch.

        :param inputs: `input_ids`, `attention_mask` and `token_type_ids`, int64 [B, T].
        :return: float32 [B, dim].
        """

    def encode_texts(
        self,
        texts: Sequence[str],
        batch_size: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Embed texts. An empty text is a text.

        :param batch_size: default the engine's.
        :param progress: is called with the number of texts done since the last call.
        :return: float32 [N, dim], in the order of `texts`.
        :raises DataError: one of them is not a text; the message says where, and nothing has been computed.
        """
        if isinstance(texts, str):
            raise DataError('expected a list of texts, got a single one: put it into a list')
        size = self.batch_size if batch_size is None else check_batch_size(batch_size)
        for position, text in enumerate(texts):
            if fault := _find_fault(text):
                raise DataError(f'text {position} {fault}')
        embeddings = np.empty((len(texts), self.dim), np.float32)
        window = max(_WINDOW, size)
        for start in range(0, len(texts), window):
            encodings = self.tokenizer.tokenize(texts[start : start + window])
            # the longest first: if memory does not suffice, it shows at once
            order = sorted(range(len(encodings)), key=lambda row: -len(encodings[row]))
            for first in range(0, len(order), size):
                rows = order[first : first + size]
                inputs = self.tokenizer.collate([encodings[row] for row in rows])
                embeddings[start + np.array(rows)] = self.run(inputs)
                if progress:
                    progress(len(rows))
        return embeddings

    def encode(
        self,
        documents: Documents,
        batch_size: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Documents:
        """Set the `embedding` of documents, each a row of one float32 array [N, dim], from their `text`.

        :return: the same documents.
        :raises DataError: a document has no text, or a broken one; the message names its position and id, and nothing
            has been computed.
        """
        texts: list[str] = []
        for position, document in enumerate(documents):
            if fault := 'has no text to encode' if document.text is None else _find_fault(document.text):
                raise DataError(f'document {position} (id {document.id!r}) {fault}')
            texts.append(document.text or '')
        for document, embedding in zip(documents, self.encode_texts(texts, batch_size, progress), strict=True):
            document.embedding = embedding
        return documents


def _find_fault(text: object) -> str | None:
    if not isinstance(text, str):
        return f'is not a text but {type(text).__name__}'
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f'is not valid Unicode: {text[error.start]!r} at character {error.start} is half a character'
    return None


def check_batch_size(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f'batch_size is {size!r}: it must be a positive integer')
    return size
