"""From documents to the rows of a shard: what a document may hold, and what is said of one that is malformed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from finetuner.data.contents import modality_of
from finetuner.excepts import DataError

if TYPE_CHECKING:
    from finetuner.documents import Content, Document

MAX_CHUNKS = 3
SHAPES = {1: 'items', 2: 'pairs', 3: 'triplets'}


class Cell(NamedTuple):
    """One content.

    :param tensor: the numbers, little-endian and in the order of C.
    :param dtype: 'float32' or 'uint8'.
    :param modality: what the document says it is.
    :param kind: what it is.
    """

    text: str | None
    uri: str | None
    blob: bytes | None
    tensor: bytes | None
    dtype: str | None
    shape: tuple[int, ...] | None
    modality: str | None
    kind: str

    @property
    def is_linked(self) -> bool:
        """Whether the content itself is elsewhere."""
        return self.uri is not None and self.blob is None and self.tensor is None

    @property
    def size(self) -> int:
        return len(self.text or '') + len(self.uri or '') + len(self.blob or b'') + len(self.tensor or b'')


class Row(NamedTuple):
    """A document: one cell, or one for each of its chunks."""

    id: str
    cells: tuple[Cell, ...]
    label: str | None
    score: float | None
    tags: str

    @property
    def size(self) -> int:
        return sum(cell.size for cell in self.cells) + len(self.tags)

    def content(self) -> bytes:
        """All values but the id, such that no two rows have the same bytes."""
        text, uri, blob, *tensor, modality, _ = self.cells[0] if len(self.cells) == 1 else (None,) * len(Cell._fields)
        fields: list[Any] = [text, uri, blob, modality, self.label, self.tags]
        marks = b''
        # texts have the bytes that they had when there were texts only
        if any(value is not None for value in tensor):
            marks += b'+tensor'
            fields += tensor
        if self.score is not None:
            marks += b'+score'
            fields.append(repr(self.score))
        if len(self.cells) > 1:
            marks += b'+chunks%d' % len(self.cells)
            fields += (value for cell in self.cells for value in cell[:-1])
        return marks + b''.join(map(_delimited, fields))


def _delimited(value: Any) -> bytes:
    if value is None:
        return b'-'
    field = value if isinstance(value, bytes) else str(value).encode()
    return b'%d:%b' % (len(field), field)


def row_of(document: Document, position: int) -> Row:
    """
    :raises DataError: the document cannot be stored. The message names its position and id.
    """
    # here, because docarray takes seconds to import, and most of the registry does without
    from finetuner.documents import LABEL, SCORE, Document

    if not isinstance(document, Document):
        raise DataError(f'documents[{position}] is a {type(document).__name__}, not a Document')
    identity = str(position) if document.id is None else str(document.id)
    place = f'documents[{position}] (id {document.id!r})'
    _check_unicode(identity, f'{place}: id')
    tags = dict(document.tags or {})
    label = _label(tags.pop(LABEL, None), f'{place}: tags[{LABEL!r}]')
    score = _score(tags.pop(SCORE, None), f'{place}: tags[{SCORE!r}]')
    return Row(identity, tuple(_cells(document, place)), label, score, _json(tags, place))


def _cells(document: Document, place: str) -> Iterator[Cell]:
    if not document.chunks:
        yield _cell(document, place)
        return
    if own := _contents(document):
        raise DataError(f'{place} has several contents ({", ".join([*own, "chunks"])}): give it one')
    if not 2 <= len(document.chunks) <= MAX_CHUNKS:
        raise DataError(
            f'{place} has {len(document.chunks)} chunk{"s" * (len(document.chunks) != 1)}: '
            'a pair has 2, a triplet (query, positive, negative) has 3'
        )
    for number, chunk in enumerate(document.chunks):
        yield _cell(chunk, f'{place}: chunk {number}')


def _cell(content: Content, place: str) -> Cell:
    held = _contents(content)
    if not held:
        raise DataError(f'{place} has no content: give it a text, blob, tensor or uri that is not empty')
    # beside a blob or a tensor, the URI says where it is from
    if len(held) > 1 and held not in (['uri', 'blob'], ['uri', 'tensor']):
        raise DataError(f'{place} has several contents ({", ".join(held)}): give it one')
    values = {name: getattr(content, name) for name in held}
    text, uri, blob = values.get('text'), values.get('uri'), values.get('blob')
    tensor = _tensor(values['tensor'], place) if 'tensor' in values else None
    for name, value in (('text', text), ('uri', uri), ('modality', content.modality)):
        _check_unicode(value, f'{place}: {name}')
    try:
        kind = modality_of(modality=content.modality, text=text, uri=uri, blob=blob, tensor=tensor)
    except DataError as error:
        raise DataError(f'{place}: {error}') from error
    if kind is None:
        raise DataError(
            f"{place}: the {held[-1]} is no known image or mesh: set modality to 'image' or 'mesh' if it is"
        )
    if tensor is None:
        return Cell(text, uri, blob, None, None, None, content.modality, kind)
    return Cell(None, uri, None, tensor.tobytes(), tensor.dtype.name, tensor.shape, content.modality, kind)


def _contents(content: Content) -> list[str]:
    return [name for name in ('text', 'uri', 'blob', 'tensor') if _is_set(getattr(content, name))]


def _is_set(content: Any) -> bool:
    if content is None:
        return False
    if isinstance(content, str):
        return bool(content.strip())
    if isinstance(content, np.ndarray):
        return True
    return len(content) > 0


def _tensor(value: np.ndarray, place: str) -> np.ndarray:
    """The numbers as uint8 if that is what they are, else as float32."""
    if value.ndim == 0 or value.size == 0:
        raise DataError(f'{place}: the tensor has the shape {value.shape}: there is nothing in it to learn from')
    if value.dtype.kind not in 'biuf':
        raise DataError(f'{place}: the tensor has the dtype {value.dtype.name}: give numbers')
    with np.errstate(over='ignore'):
        array = np.ascontiguousarray(value, np.uint8 if value.dtype == np.uint8 else '<f4')
    if array.dtype != np.uint8 and not np.isfinite(array).all():
        raise DataError(f'{place}: the tensor has numbers that are not finite in float32')
    return array


def _label(value: Any, place: str) -> str | None:
    """Labels compare as strings. Whole numbers come as floats from some senders: 3 and 3.0 are one label."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if value is None:
        return None
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(f'{place} is {_shown(value)}: a label is a string, a number or a boolean')
    label = str(value)
    if not label.strip():
        raise DataError(f'{place} is empty: give it a label or leave it out')
    _check_unicode(label, place)
    return label


def _score(value: Any, place: str) -> float | None:
    """A number of float32; as text too, which is how the first Finetuner kept it."""
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        with np.errstate(over='ignore'):
            score = float(np.float32(value))
    except (TypeError, ValueError):
        raise DataError(f'{place} is {_shown(value)}: a score is a number') from None
    if not math.isfinite(score):
        raise DataError(f'{place} is {_shown(value)}: a score is a finite number')
    return score


def _json(tags: dict[str, Any], place: str) -> str:
    if not tags:
        return '{}'
    try:
        return json.dumps(tags, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f'{place}: tags cannot be written as JSON: {error}') from error


def _check_unicode(value: str | None, place: str) -> None:
    if value is None or value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f'{place} is not valid Unicode: {error.reason} at character {error.start}') from error


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f'{shown[:80]}…'
