"""What every engine does: check, prepare, sort by length, run batches, put the results in the order of the request."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from finetuner.excepts import DataError
from finetuner.inference.pool import Pool
from finetuner.inference.preprocessing import Modality, Preprocessor

if TYPE_CHECKING:
    from finetuner.data.links import Links
    from finetuner.documents import Content

# texts that are tokenized, and sorted among each other, at once: enough for even batches, little memory
_WINDOW = 8192
# a batch of texts ends before its tokens with padding are so many times those without
_PADDED = 1.1
_DOWNLOADS = 8  # files that are fetched at the same time

# the fields of a document that may hold its content, the first that is set counts
_FIELDS: dict[Modality, tuple[str, ...]] = {
    'text': ('text',),
    'image': ('blob', 'tensor', 'uri'),
    'mesh': ('blob', 'tensor', 'uri'),
    'tensor': ('tensor',),
}

Result = TypeVar('Result')
Documents = TypeVar('Documents', bound='Sequence[Content]')


@dataclass(frozen=True)
class Part:
    """Some items of a batch, embedded.

    :param rows: their positions in the batch, int64 [B].
    :param embeddings: float32 [B, dim].
    :param computed: the tokens, or items, that the model computed for them, padding included.
    """

    rows: np.ndarray
    embeddings: np.ndarray
    computed: int


class InferenceEngine(ABC):
    """A loaded model. Its methods may be called from several threads at once.

    :param preprocessor: the model's.
    :param dim: the length of an embedding.
    :param batch_size: how many items the model is given at once, unless a call says otherwise.
    """

    padded_freely: int = 256
    """Tokens of a batch of texts, padding included, up to which padding costs less than a further batch."""
    part_tokens: int | None = None
    """Tokens of a batch of texts, padding included, beyond which it gains nothing by another text."""
    pool: Pool | None = None
    """Computes several small batches at the same time, where that is faster than one after the other."""
    precision: str = 'fp32'
    """What the model computes in; of an ONNX model, what it was exported with is not known here."""

    def __init__(self, preprocessor: Preprocessor, dim: int, batch_size: int):
        self.preprocessor = preprocessor
        self.dim = dim
        self.batch_size = check_batch_size(batch_size)

    @property
    def modality(self) -> Modality:
        """What the model takes: `text`, `image`, `mesh` or `tensor`."""
        return self.preprocessor.modality

    @property
    def max_length(self) -> int | None:
        """The longest text in tokens, special ones included; the rest is cut off. None if the model takes no texts."""
        return getattr(self.preprocessor, 'max_length', None)

    @abstractmethod
    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Embed one batch.

        :param inputs: what the preprocessor's `collate` gives.
        :return: float32 [B, dim].
        """

    def embed(self, features: Sequence[np.ndarray]) -> np.ndarray:
        """Embed one batch of prepared items.

        :param features: of the items, as :meth:`features` gives them.
        :return: float32 [B, dim], in their order.
        """
        return self.run(self.preprocessor.collate(features))

    def embed_beside(self, features: Sequence[np.ndarray], others: int) -> np.ndarray:
        """Embed one of several batches at the same time, maybe with fewer threads.

        :param others: how many there are beside it.
        """
        return self.embed(features)

    def computed(self, features: Sequence[np.ndarray]) -> int:
        """The tokens, or items, that the model computes for one batch of prepared items, padding included."""
        return len(features) * max(map(len, features)) if self.modality == 'text' else len(features)

    def split(self, features: Sequence[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
        """The positions, int64 [B], of one batch after the other, so that little is padded.

        The longest come first: if memory does not suffice, it shows at once.
        """
        order = np.array(sorted(range(len(features)), key=lambda row: -len(features[row])), np.int64)
        first = used = 0
        for last, row in enumerate(order):
            length, count = len(features[row]), last - first
            longest = len(features[order[first]])
            tokens = (count + 1) * longest
            is_padded = count * longest >= self.padded_freely and tokens > _PADDED * (used + length)
            is_large = self.part_tokens is not None and tokens > self.part_tokens
            if count == batch_size or (count and self.modality == 'text' and (is_padded or is_large)):
                yield order[first:last]
                first, used = last, 0
            used += length
        if len(order):
            yield order[first:]

    def embed_parts(self, features: Sequence[np.ndarray], batch_size: int) -> Iterator[Part]:
        """Embed prepared items in batches that need little padding: each is given as soon as it is computed.

        :param batch_size: how many items the model is given at once.
        """

        def part(embed: Callable[[Sequence[np.ndarray]], np.ndarray], rows: np.ndarray) -> Part:
            batch = [features[row] for row in rows]
            return Part(rows, embed(batch), self.computed(batch))

        parts = list(self.split(features, batch_size))
        if self.pool and len(parts) > 1:
            beside = partial(self.embed_beside, others=len(parts) - 1)
            yield from self.pool.as_done(partial(part, beside), parts)
        else:
            yield from map(partial(part, self.embed), parts)

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
        :raises DataError: the model takes no texts, or one of them is not a text; the message says where, and nothing
            has been computed.
        """
        if self.modality != 'text':
            raise DataError(f'this model does not take texts: its modality is {self.modality}')
        return self.encode_contents(texts, batch_size, progress, name=lambda position: f'text {position}')

    def encode_contents(
        self,
        contents: Sequence[Any],
        batch_size: int | None = None,
        progress: Callable[[int], object] | None = None,
        links: Links | None = None,
        name: Callable[[int], str] = lambda position: f'item {position}',
    ) -> np.ndarray:
        """Embed what the model takes.

        ======== ======================================================================================
        modality content
        ======== ======================================================================================
        text     str
        image    bytes of a file, a path or URL of one, or pixels, uint8 [H, W, 3]
        mesh     bytes of a file, a path or URL of one, or points, float [P, 3]
        tensor   numbers [D]
        ======== ======================================================================================

        :param batch_size: default the engine's.
        :param progress: is called with the number of items done since the last call.
        :param links: opens paths and URLs; without one, all that this process can read.
        :param name: what an item is called in an error, by its position.
        :return: float32 [N, dim], in the order of `contents`.
        :raises DataError: an item cannot be read. Of texts, nothing has been computed then.
        """
        if isinstance(contents, (str, bytes)):
            raise DataError('expected a list of texts, got a single one: put it into a list')
        size = self.batch_size if batch_size is None else check_batch_size(batch_size)
        embeddings = np.empty((len(contents), self.dim), np.float32)
        for start, features in self._windows(contents, size, links, name):
            for part in self.embed_parts(features, size):
                embeddings[start + part.rows] = part.embeddings
                if progress:
                    progress(len(part.rows))
        return embeddings

    def encode(
        self,
        documents: Documents,
        batch_size: int | None = None,
        progress: Callable[[int], object] | None = None,
        links: Links | None = None,
    ) -> Documents:
        """Set the `embedding` of documents, each a row of one float32 array [N, dim].

        It is of their `text` if the model takes texts, `tensor` if it takes tensors, and otherwise `blob`, `tensor` or
        `uri`, the first that is set.

        :param links: opens URIs; without one, all that this process can read.
        :return: the same documents.
        :raises DataError: a document has nothing to encode, or a broken one; the message names its position and id, and
            no document has been changed.
        """

        def name(position: int) -> str:
            return name_document(position, documents[position])

        embeddings = self.encode_contents(self.contents(documents), batch_size, progress, links, name)
        for document, embedding in zip(documents, embeddings, strict=True):
            document.embedding = embedding
        return documents

    def contents(self, documents: Sequence[Content], failed: dict[int, str] | None = None) -> list[Any]:
        """What of each document is to be encoded, as :meth:`encode` chooses it.

        :param failed: takes what is wrong with documents that have nothing to encode, by position; theirs is None.
        :raises DataError: one has nothing to encode, and `failed` is None.
        """
        found: list[Any] = []
        for position, document in enumerate(documents):
            try:
                found.append(self.content(document, position))
            except DataError as error:
                if failed is None:
                    raise
                failed[position] = str(error)
                found.append(None)
        return found

    def check(self, contents: Sequence[Any], name: Callable[[int], str]) -> None:
        """:raises DataError: one of the texts is none. Contents of other kinds are looked at when they are read."""
        if self.modality == 'text':
            for position, text in enumerate(contents):
                if fault := _find_fault(text):
                    raise DataError(f'{name(position)} {fault}')

    def content(self, document: Content, position: int) -> Any:
        """What of a document is to be encoded, as :meth:`encode` chooses it.

        :raises DataError: there is nothing.
        """
        fields = _FIELDS[self.modality]
        for field in fields:
            content = getattr(document, field)
            if content is not None:
                return np.asarray(content) if field == 'tensor' else content
        among = f': set {", ".join(fields[:-1])} or {fields[-1]}' if len(fields) > 1 else ''
        raise DataError(f'{name_document(position, document)} has no {self.modality} to encode{among}')

    def _windows(
        self, contents: Sequence[Any], size: int, links: Links | None, name: Callable[[int], str]
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """The position of the first item and the features of as many items as are prepared at once, one after the
        other."""
        self.check(contents, name)
        window = max(_WINDOW, size) if self.modality == 'text' else size
        starts = range(0, len(contents), window)

        def prepare(start: int) -> list[np.ndarray]:
            return self.features(contents[start : start + window], start, links, name)

        return zip(starts, _one_ahead(prepare, starts), strict=True)

    def features(
        self, contents: Sequence[Any], start: int, links: Links | None, name: Callable[[int], str]
    ) -> list[np.ndarray]:
        """Prepare items for the model.

        :param start: the position of the first.
        :raises DataError: an item cannot be read.
        """
        if self.modality in ('image', 'mesh'):
            contents = self._opened(contents, start, links, name)
        try:
            return self.preprocessor.features(contents)
        except DataError as error:
            place = re.match(r'item (\d+) ', str(error))
            if place is None:
                raise
            raise DataError(f'{name(start + int(place[1]))} {str(error)[place.end() :]}') from error

    def _opened(
        self, contents: Sequence[Any], start: int, links: Links | None, name: Callable[[int], str]
    ) -> list[Any]:
        """Paths and URLs as paths that may be read, or as the bytes that they lead to."""
        opened = list(contents)
        uris = [row for row, content in enumerate(opened) if isinstance(content, (str, Path))]
        if not uris:
            return opened
        if links is None:
            from finetuner.data.links import Links

            links = Links()

        def read(row: int) -> bytes | Path:
            uri = str(opened[row])
            try:
                if uri.startswith('file://') or not re.match(r'data:|\w[\w+.-]*://', uri):
                    return links.path(uri)
                return links.read(uri, self.modality)
            except DataError as error:
                raise DataError(f'{name(start + row)} cannot be read: {error}') from error

        with ThreadPoolExecutor(min(_DOWNLOADS, len(uris))) as pool:
            for row, content in zip(uris, list(pool.map(read, uris)), strict=True):
                opened[row] = content
        return opened


def name_document(position: int, document: Content) -> str:
    """What a document is called in an error."""
    return f'document {position} (id {document.id!r})'


def _one_ahead(prepare: Callable[[int], Result], starts: Sequence[int]) -> Iterator[Result]:
    """Results in order; while the caller works with one, the next is prepared in a thread."""
    if len(starts) < 2:
        yield from map(prepare, starts)
        return
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(prepare, starts[0])
        for start in starts[1:]:
            done = ahead.result()
            ahead = pool.submit(prepare, start)
            yield done
        yield ahead.result()


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
