"""From rows to documents: texts, images, meshes and tensors, each with its label or score."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from finetuner.data.contents import is_data_uri, is_url, modality_of_bytes, modality_of_uri
from finetuner.data.links import Links
from finetuner.data.options import CSVOptions
from finetuner.data.table import Layout, Row, Table, scalar
from finetuner.excepts import DataError

if TYPE_CHECKING:
    import numpy as np

    from finetuner.documents import Content, Document

logger = logging.getLogger(__name__)

THREADS = 8
WINDOW = 32  # files that are fetched ahead

# the kinds that a model's task asks for; of two columns with different ones, the text comes first
_KINDS = {
    'text-to-text': ('text',),
    'image-to-image': ('image',),
    'mesh-to-mesh': ('mesh',),
    'text-to-image': ('text', 'image'),
}

_PLURALS = {'image': 'images', 'mesh': 'meshes'}

Item = TypeVar('Item')


def sampled(items: Iterable[Item], options: CSVOptions) -> Iterator[tuple[int, Item]]:
    """The items that `sampling_rate` and `size` leave, with their positions among all."""
    chance = random.Random(options.seed)
    kept = 0
    for position, item in enumerate(items):
        if options.sampling_rate is not None and chance.random() >= options.sampling_rate:
            continue
        yield position, item
        kept += 1
        if kept == options.size:
            return


def make_documents(
    table: Table, layout: Layout, options: CSVOptions, links: Links, task: str | None
) -> Iterator[Document]:
    """A document for each row. Its id follows from its position and its cells.

    :param task: what the model that is to learn does, as in `finetuner.models`; None if it is not known.
    :raises DataError: a cell is missing, of another kind than its column, or names a file that cannot be read. The
        message names source, row and column.
    """
    kinds = [_kind_of_column(table, column, task) for column in layout.contents]
    builder = _Builder(table, layout, kinds, options, links.at(table.folder))
    if set(kinds) != {'text'}:
        logger.info('%s: %s', table.name, ', '.join(map(str, kinds)))
    is_remote = options.convert_to_blob and any(
        kind != 'text' and is_url(_uri(row[column]))
        for column, kind in zip(layout.contents, kinds, strict=True)
        for _, row in table.sample
    )
    table.sample = []  # it may hold images
    rows = sampled(table.rows, options)
    yield from in_order(builder, rows) if is_remote else map(builder, rows)


def in_order(make: Callable[[Item], Any], items: Iterable[Item]) -> Iterator[Any]:
    """What `make` makes of the items, in their order, several of them at a time: for those that wait for a network."""
    items = iter(items)
    pool = ThreadPoolExecutor(THREADS)
    waiting: deque[Future[Any]] = deque()
    failed: Exception | None = None
    try:
        while True:
            while failed is None and len(waiting) < WINDOW:
                try:
                    item = next(items)
                except StopIteration:
                    break
                except Exception as error:  # is raised after what was before it
                    failed = error
                    break
                waiting.append(pool.submit(make, item))
            if not waiting:
                break
            yield waiting.popleft().result()
        if failed is not None:
            raise failed
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _kind_of_column(table: Table, column: int, task: str | None) -> str:
    """'text', 'image', 'mesh' or 'tensor'."""
    wanted = _KINDS.get(task or '', ())
    if len(wanted) == 1:
        values = [row[column] for _, row in table.sample]
        if wanted == ('text',) or any(isinstance(value, str | bytes | dict) for value in values):
            return wanted[0]
    found = [_kind_of_value(row[column]) for _, row in table.sample if row[column] is not None]
    kinds = [kind for kind in found if kind is not None]
    if not kinds:
        return 'image' if 'image' in wanted and found else 'text'
    # the first row says what is in which column; a text may be a path by chance
    first = kinds[0]
    if first == 'text' or sum(kind == first for kind in kinds) * 2 >= len(kinds):
        return 'mesh' if first == 'tensor' and wanted == ('mesh',) else first
    return 'text'


def _kind_of_value(value: Any) -> str | None:
    """None for bytes that say nothing of what they are."""
    if isinstance(value, str):
        uri = value.strip()
        if is_data_uri(uri):
            return modality_of_uri(uri)
        if ' ' in uri and is_url(uri):
            return 'text'
        return modality_of_uri(uri) or ('image' if is_url(uri) else 'text')
    if isinstance(value, bytes):
        return modality_of_bytes(value)
    if isinstance(value, dict):
        content, path = value.get('bytes'), value.get('path')
        found = modality_of_bytes(content) if isinstance(content, bytes) else None
        return found or (modality_of_uri(path) if isinstance(path, str) else None)
    if _is_picture(value):
        return 'image'
    return 'tensor' if isinstance(value, list | tuple) or hasattr(value, '__array__') else 'text'


def _uri(value: Any) -> str:
    """What a cell points at, '' if it is nothing of this kind."""
    if isinstance(value, dict):
        value = None if value.get('bytes') else value.get('path')
    return value.strip() if isinstance(value, str) else ''


def _is_picture(value: Any) -> bool:
    """Whether it is an image of Pillow, which need not be installed."""
    return any(kind.__module__ == 'PIL.Image' for kind in type(value).__mro__)


class _Builder:
    """Makes the document of one row."""

    def __init__(self, table: Table, layout: Layout, kinds: list[str], options: CSVOptions, links: Links):
        self.table, self.layout, self.options, self.links = table, layout, options, links
        self.columns = list(zip(layout.contents, kinds, strict=True))
        if kinds == ['image', 'text']:  # the order in which text-to-image models have them
            self.columns.reverse()
        self.swapped = sorted(kinds) == ['image', 'text']

    def __call__(self, numbered: tuple[int, Row]) -> Document:
        from docarray.typing import ID

        from finetuner.documents import LABEL, SCORE, Content, Contents, Document

        position, (number, values) = numbered
        if self.swapped:
            self._check_order(number, values)
        tags: dict[str, Any] = {}
        # the content is checked first, and the label is shown beside it
        contents = [self._content(number, values, column, kind) for column, kind in self.columns]
        if self.layout.label is not None:
            tags[LABEL] = self._label(number, values)
        if self.layout.score is not None:
            tags[SCORE] = self._score(number, values)
        parts = [str(position), *(_identity(values[column]) for column in self.layout.contents)]
        parts += [str(tag) for tag in tags.values()]
        digest = hashlib.blake2b('\0'.join(parts).encode('utf-8', 'surrogatepass'), digest_size=16)
        if len(contents) == 1:
            return Document(id=ID(digest.hexdigest()), tags=tags, **contents[0])
        chunks = [Content(id=ID(f'{digest.hexdigest()}-{chunk}'), **content) for chunk, content in enumerate(contents)]
        return Document(id=ID(digest.hexdigest()), tags=tags, chunks=Contents(chunks))

    def _content(self, number: int, values: Sequence[Any], column: int, kind: str) -> dict[str, Any]:
        place, value = partial(self.table.place, number, column), values[column]
        if value is None or (isinstance(value, str | bytes) and not value.strip()):
            shown = ''
            if self.layout.label is not None and isinstance(values[self.layout.label], str):
                shown = f' (label {values[self.layout.label].strip()!r})'
            raise DataError(f'{place()}: the {kind} is {"missing" if value is None else "empty"}{shown}')
        if kind == 'text':
            if not isinstance(value, str):
                raise DataError(f'{place()}: {_shown(value)} is no text')
            return {'text': value}
        try:
            if kind == 'tensor':
                return {'tensor': as_tensor(value)}
            return self._file(value, kind)
        except DataError as error:
            hint = ''
            if kind in _PLURALS and isinstance(value, str) and _kind_of_value(value) == 'text':
                hint = f'. The model reads {_PLURALS[kind]}: each cell of this column is to name a file'
            raise DataError(f'{place()}: {error}{hint}') from error

    def _file(self, value: Any, kind: str) -> dict[str, Any]:
        """An image or a mesh."""
        uri = None
        if isinstance(value, dict):
            value, uri = value.get('bytes') or value.get('path'), value.get('path')
        if isinstance(value, str):
            uri = value.strip()
            return read_link(uri, kind, self.options, self.links)
        name = {'uri': uri} if isinstance(uri, str) and uri else {}
        if isinstance(value, bytes):
            return {**content_of_file(value, kind, self.options), **name}
        if kind == 'image' and _is_picture(value):
            return {'blob': _encode(value), 'modality': kind, **name}
        return {'tensor': as_tensor(value), 'modality': kind}

    def _check_order(self, number: int, values: Sequence[Any]) -> None:
        (text, _), (image, _) = self.columns
        if (
            isinstance(values[image], str)
            and _kind_of_value(values[image]) == 'text'
            and _kind_of_value(values[text]) == 'image'
        ):
            raise DataError(
                f'{self.table.place(number)}: the image is in column {text + 1} and the text in column {image + 1}, '
                'and in the first row it is the other way round: give all rows one order'
            )

    def _label(self, number: int, values: Sequence[Any]) -> Any:
        assert self.layout.label is not None
        value = scalar(values[self.layout.label])
        if isinstance(value, str):
            value = value.strip()
        content = values[self.layout.contents[0]]
        shown = f' (text {content[:60]!r})' if isinstance(content, str) else ''
        place = self.table.place(number, self.layout.label)
        if value is None or value == '':
            raise DataError(f'{place}: the label is {"empty" if value == "" else "missing"}{shown}')
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise DataError(f'{place}: {_shown(value)} is no label: it is a text, a number or a boolean')
        return value

    def _score(self, number: int, values: Sequence[Any]) -> float:
        assert self.layout.score is not None
        value = values[self.layout.score]
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score) or isinstance(value, bool):
            raise DataError(
                f'{self.table.place(number, self.layout.score)}: {_shown(value)} is no score: give a number'
            )
        return score


def read_link(uri: str, kind: str, options: CSVOptions, links: Links) -> dict[str, Any]:
    """The fields of a content that is elsewhere."""
    if not options.convert_to_blob and not is_data_uri(uri):
        return {'uri': uri if '://' in uri else str(links.path(uri)), 'modality': kind}
    content = content_of_file(links.read(uri, kind), kind, options)
    return content if is_data_uri(uri) else {**content, 'uri': uri}


def content_of_file(content: bytes, kind: str, options: CSVOptions) -> dict[str, Any]:
    """The fields of a content by the bytes of its file."""
    if kind == 'mesh' and options.create_point_clouds:
        from finetuner.inference.meshes import MeshPreprocessor

        try:
            [cloud] = MeshPreprocessor(options.point_cloud_size).features([content])
        except ModuleNotFoundError as error:
            if error.name != 'trimesh':
                raise
            raise DataError(
                'meshes are read with trimesh, which is not installed: pip install "finetuner[inference]", or keep '
                'their files, CSVOptions(create_point_clouds=False)'
            ) from error
        except DataError as error:
            raise DataError(f'the mesh {str(error).removeprefix("item 0 ")}') from error
        return {'tensor': cloud, 'modality': kind}
    return {'blob': content, 'modality': kind}


def as_tensor(value: Any) -> np.ndarray:
    """Numbers as uint8 if that is what they are, else as float32.

    :raises DataError: they are no numbers, of no common shape, or not finite.
    """
    import numpy as np

    if hasattr(value, 'detach'):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError('the lists are of different lengths') from None
    if array.dtype.kind not in 'biuf':
        raise DataError(f'{_shown(value)} is no list of numbers')
    if array.ndim == 0 or array.size == 0:
        raise DataError(f'{_shown(value)} has no numbers in it')
    with np.errstate(over='ignore'):
        array = array if array.dtype == np.uint8 else array.astype(np.float32)
    if array.dtype != np.uint8 and not np.isfinite(array).all():
        raise DataError('some numbers are not finite in float32')
    return array


def _encode(picture: Any) -> bytes:
    """An image of Pillow as PNG, in which no pixel changes."""
    file = io.BytesIO()
    if picture.mode not in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'):
        picture = picture.convert('RGB')
    picture.save(file, 'PNG', compress_level=1)
    return file.getvalue()


def _identity(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = value.get('bytes') or value.get('path') or b''
    content = value.encode() if isinstance(value, str) else value
    if not isinstance(content, bytes):
        content = content.tobytes() if hasattr(content, 'tobytes') else repr(content).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _shown(value: Any) -> str:
    shown = ' '.join(repr(value).split())
    return shown if len(shown) <= 60 else f'{shown[:60]}…'


def check_documents(
    documents: Iterable[Any], options: CSVOptions, name: str, task: str | None, links: Links, accepted: str
) -> Iterator[Document]:
    """Documents as they are, with the files read that they name; the given ones are not changed.

    :param task: of a model that reads images or meshes: a tensor is one of these, unless its document says otherwise.

    :raises DataError: something else is among them, or a file cannot be read. The message names the item.
    """
    from finetuner.documents import Document

    def make(numbered: tuple[int, Any]) -> Document:
        position, document = numbered
        place = f'item {position} of {name}'
        if not isinstance(document, Document):
            raise DataError(f'{place} is of type {type(document).__name__}: {accepted}')
        try:
            found = _complete(document, options, task, links)
            chunks = [_complete(chunk, options, task, links) for chunk in document.chunks or ()]
        except DataError as error:
            raise DataError(f'{place} (id {document.id!r}): {error}') from error
        swapped = _is_image_and_text(document.chunks or ())
        if any(chunks) or swapped:
            assert document.chunks is not None
            made = [chunk.model_copy(update=new) for chunk, new in zip(document.chunks, chunks, strict=True)]
            found['chunks'] = type(document.chunks)(made[::-1] if swapped else made)
        return document.model_copy(update=found) if found else document

    items = sampled(documents, options)
    first = next(items, None)
    if first is None:
        return
    contents = [first[1], *(getattr(first[1], 'chunks', None) or ())]
    is_remote = options.convert_to_blob and any(is_url(getattr(content, 'uri', None) or '') for content in contents)
    items = itertools.chain([first], items)
    yield from in_order(make, items) if is_remote else map(make, items)


def _is_image_and_text(chunks: Sequence[Content]) -> bool:
    """Whether they are a pair the other way round than models of texts and images have it."""
    return len(chunks) == 2 and [chunk.text is not None or chunk.modality == 'text' for chunk in chunks] == [
        False,
        True,
    ]


def _complete(content: Content, options: CSVOptions, task: str | None, links: Links) -> dict[str, Any]:
    """What to change in a content so that it holds what its URI names, and says what its tensor is."""
    if content.text or content.blob:
        return {}
    if content.tensor is not None:
        kinds = {'image-to-image': 'image', 'text-to-image': 'image', 'mesh-to-mesh': 'mesh'}
        return {'modality': kinds[task]} if task in kinds and content.modality is None else {}
    if not content.uri or not options.convert_to_blob:
        return {}
    kind = content.modality or modality_of_uri(content.uri) or ('image' if is_url(content.uri) else None)
    if kind not in ('image', 'mesh'):
        return {}
    return {'uri': None, **read_link(content.uri, kind, options, links)}
