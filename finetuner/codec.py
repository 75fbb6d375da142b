"""The direct codec between documents and docarray's protobuf messages.

Stock docarray builds a pydantic validator for every field of every document it reads. These functions go from a
message's nodes to Python values and back in one pass. They write what stock docarray writes, read what it wrote, and
refuse with a `DataError` what does not fit a field.

Arrays are copied out of the message, so they are writable and outlive it. A tensor of another framework travels, and
arrives, as a numpy array.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from docarray.base_doc.base_node import BaseNode
from docarray.base_doc.doc import BaseDocWithoutId
from docarray.typing import ID, NdArray
from docarray.typing.tensor.abstract_tensor import AbstractTensor

from finetuner.excepts import DataError

if TYPE_CHECKING:
    from docarray.proto import DocProto, NodeProto

Reader = Callable[['NodeProto', str], Any]
Writer = Callable[['NodeProto', Any], None]

MAX_DEPTH = 20
"""Of dicts and lists in tags: a message may nest 100 deep, of which each takes up to three."""

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

# a node's `content` names as a reader of an error message knows them
_KINDS = {
    'integer': 'an integer',
    'float': 'a float',
    'boolean': 'a boolean',
    'blob': 'bytes',
    'ndarray': 'an array',
    'doc': 'a document',
    'doc_array': 'documents',
    'list': 'a list',
    'set': 'a set',
    'tuple': 'a tuple',
    'dict': 'a dict',
}


class Base64Bytes(bytes):
    """Bytes that travel as base64 text.

    A `blob` that came through a gateway from JSON is one, so that the answer to the HTTP client is base64 again: a
    stock gateway cannot put raw bytes into JSON. An executor that makes bytes for an HTTP client wraps them in this.
    """


def read_fields(message: DocProto, readers: Mapping[str, Reader], noun: str, position: int | None) -> dict[str, Any]:
    """The values of the fields that are in `message`, in the readers' order. Stock docarray, too, skips unknown fields.

    :param readers: by field name, what turns a node and the name of its content into a value.
    :param noun: what the message is called in an error: document or chunk.
    :param position: its place among its peers, for the error; None for a message that came alone.
    :raises DataError: a field's content does not fit it. The message names the document and the field.
    """
    data = message.data
    values: dict[str, Any] = {}
    name = ''
    try:
        for name, reader in readers.items():
            if name in data:
                node = data[name]
                content = node.WhichOneof('content')
                values[name] = None if content is None else reader(node, content)
    except (ValueError, TypeError) as error:
        identity = data['id'].text if 'id' in data else None
        raise DataError(f'{_place(noun, position, identity)}, field {name!r}: {error}') from error
    return values


def write_fields(
    message: DocProto, values: Mapping[str, Any], writers: Mapping[str, Writer], noun: str, position: int | None
) -> None:
    """Fill `message` with a document's values; the parameters are as in `read_fields`.

    :raises DataError: a value cannot be written. The message names the document and the field.
    """
    data = message.data
    name = ''
    try:
        for name, value in values.items():
            node = data[name]
            if value is not None:
                writers[name](node, value)
    except (ValueError, TypeError) as error:
        raise DataError(f'{_place(noun, position, values.get("id"))}, field {name!r}: {error}') from error
    except RecursionError as error:
        raise DataError(
            f'{_place(noun, position, values.get("id"))}, field {name!r} nests deeper than {MAX_DEPTH} levels'
        ) from error


def _place(noun: str, position: int | None, identity: str | None) -> str:
    return noun + ('' if position is None else f' {position}') + (f' (id {identity!r})' if identity else '')


def unexpected(wanted: str, content: str) -> ValueError:
    """The error of a field whose node holds another kind of content than the wanted one."""
    return ValueError(f'expected {wanted}, got {_KINDS.get(content, content)}')


def read_id(node: NodeProto, content: str) -> ID:
    if content == 'text':
        return ID(node.text)
    if content == 'integer':
        return ID(node.integer)
    raise unexpected('text', content)


def write_id(node: NodeProto, value: str) -> None:
    node.text = value
    node.type = 'id'


def read_text(node: NodeProto, content: str) -> str:
    if content != 'text':
        raise unexpected('text', content)
    return node.text


def write_text(node: NodeProto, value: str) -> None:
    node.text = value


def read_blob(node: NodeProto, content: str) -> bytes:
    if content == 'blob':
        return node.blob
    if content == 'text':
        return Base64Bytes(decode_base64(node.text))
    raise unexpected('bytes, or base64 text', content)


def write_blob(node: NodeProto, value: bytes) -> None:
    if isinstance(value, Base64Bytes):
        node.text = encode_base64(value)
    else:
        node.blob = value


def encode_base64(value: bytes) -> str:
    return base64.b64encode(value).decode('ascii')


def decode_base64(text: str) -> bytes:
    """The bytes of padded base64 text in the standard or the URL-safe alphabet.

    :raises ValueError: the text is neither.
    """
    try:
        return base64.b64decode(text.encode('ascii').translate(_STANDARD_ALPHABET), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError('the text is not base64, which is how JSON carries bytes') from error


_STANDARD_ALPHABET = bytes.maketrans(b'-_', b'+/')


def read_array(node: NodeProto, content: str) -> NdArray:
    if content == 'ndarray':
        return _dense_array(node)
    if content in ('list', 'tuple'):
        return as_array(read_value(node, content))
    raise unexpected('an array', content)


def _dense_array(node: NodeProto) -> NdArray:
    dense = node.ndarray.dense
    dtype = _dtype(dense.dtype)
    shape = tuple(dense.shape)
    buffer = dense.buffer
    size = math.prod(shape) * dtype.itemsize
    if size != len(buffer):
        raise ValueError(
            f'an array of shape {shape} and dtype {dense.dtype!r} takes {size} bytes, its buffer has {len(buffer)}'
        )
    return NdArray(shape, dtype, bytearray(buffer) if buffer else None)


@lru_cache(maxsize=256)
def _dtype(name: str) -> np.dtype:
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{name!r} is not a numpy dtype') from error
    _check_dtype(dtype)
    return dtype


def _check_dtype(dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise ValueError(f'arrays of dtype {dtype.name} cannot travel: their items are Python objects')


def write_array(node: NodeProto, value: Any) -> None:
    if not isinstance(value, np.ndarray):
        value = as_array(value)
    _check_dtype(value.dtype)
    dense = node.ndarray.dense
    dense.buffer = value.tobytes()
    dense.shape.extend(value.shape)
    dense.dtype = value.dtype.str
    node.type = 'ndarray'


def as_array(value: Any) -> NdArray:
    """The array a document holds, from a numpy array, a tensor of torch or another framework, or lists of numbers.

    Memory is shared where it can be. Torch tensors are detached and brought to the CPU, and bfloat16, which numpy
    lacks, becomes float32.

    :raises ValueError: the value is none of them, or its items are not of one shape and of a plain dtype.
    """
    if hasattr(value, 'detach') and hasattr(value, 'cpu'):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == 'torch.bfloat16' else value).numpy()
    elif isinstance(value, AbstractTensor):
        value = value._docarray_to_ndarray()
    elif isinstance(value, (list, tuple)):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError('the lists do not form an array: their lengths differ') from error
        if value.dtype.kind not in 'biufc':
            raise ValueError(f'expected numbers, got a list of dtype {value.dtype.name}')
    elif not isinstance(value, np.ndarray):
        raise ValueError(f'expected an array, a tensor or lists of numbers, got {type(value).__name__}')
    _check_dtype(value.dtype)
    return value.view(NdArray)


def read_tags(node: NodeProto, content: str) -> dict[str, Any]:
    if content != 'dict':
        raise unexpected('a dict', content)
    return _read_dict(node)


def _read_dict(node: NodeProto) -> dict[str, Any]:
    data = node.dict.data
    values = {}
    for key in data:
        item = data[key]
        try:
            values[key] = read_value(item, item.WhichOneof('content'))
        except ValueError as error:
            raise ValueError(f'key {key!r}: {error}') from error
    return values


def read_value(node: NodeProto, content: str | None) -> Any:
    """Any value that may stand in `tags`, from its node and the name of the node's content.

    :raises ValueError: the node holds documents, a damaged array, or a set of what cannot be in one.
    """
    if content is None:
        return None
    if content in ('text', 'integer', 'float', 'boolean', 'blob'):
        return getattr(node, content)
    if content == 'dict':
        return _read_dict(node)
    if content == 'ndarray':
        return _dense_array(node)
    if content in ('list', 'tuple', 'set'):
        items = [read_value(item, item.WhichOneof('content')) for item in getattr(node, content).data]
        if content == 'list':
            return items
        try:
            return tuple(items) if content == 'tuple' else set(items)
        except TypeError as error:
            raise ValueError(f'a set cannot hold these items: {error}') from error
    raise ValueError(f'{_KINDS.get(content, content)} cannot be nested here')


def write_tags(node: NodeProto, value: Mapping[str, Any], depth: int = 1) -> None:
    if not isinstance(value, dict):
        raise ValueError(f'expected a dict, got {type(value).__name__}')
    _check_depth(depth)
    node.dict.SetInParent()
    data = node.dict.data
    for key, item in value.items():
        if not isinstance(key, str):
            raise ValueError(f'key {key!r} is not a str')
        try:
            write_value(data[key], item, depth)
        except (ValueError, TypeError) as error:
            raise ValueError(f'key {key!r}: {error}') from error


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise RecursionError


def write_value(node: NodeProto, value: Any, depth: int = 0) -> None:
    """Write any value that may stand in `tags`.

    :param depth: in how many dicts and lists it stands.

    :raises ValueError: the value, or one nested in it, has no place in a message.
    :raises RecursionError: it nests deeper than `MAX_DEPTH`.
    """
    if value is None:
        return
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, BaseNode) and not isinstance(value, AbstractTensor):
        if isinstance(value, BaseDocWithoutId) or not isinstance(value, (str, bytes)):
            raise ValueError(f'{type(value).__name__} cannot be nested here')
        node.CopyFrom(value._to_node_protobuf())
    elif isinstance(value, str):
        node.text = value
    elif isinstance(value, bool):
        node.boolean = value
    elif isinstance(value, int):
        if not INT32_MIN <= value <= INT32_MAX:
            raise ValueError(f'{value} is beyond the 32 bits of an integer on the wire: make it a float or a str')
        node.integer = value
    elif isinstance(value, float):
        node.float = value
    elif isinstance(value, bytes):
        node.blob = value
    elif isinstance(value, dict):
        write_tags(node, value, depth + 1)
    elif isinstance(value, (list, tuple, set)):
        container = getattr(node, 'list' if isinstance(value, list) else 'tuple' if isinstance(value, tuple) else 'set')
        container.SetInParent()
        _check_depth(depth + 1)
        for item in value:
            write_value(container.data.add(), item, depth + 1)
    elif isinstance(value, (np.ndarray, AbstractTensor)) or hasattr(value, 'detach'):
        write_array(node, value)
    else:
        raise ValueError(
            f'{type(value).__name__} values cannot travel: use numbers, str, bytes, arrays, lists or dicts'
        )


def to_json_value(value: Any) -> Any:
    """A value of `tags` as JSON can hold it: arrays as nested lists, bytes as base64 text, sets and tuples as lists."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, AbstractTensor) or hasattr(value, 'detach'):
        return as_array(value).tolist()
    if isinstance(value, bytes):
        return encode_base64(value)
    if isinstance(value, dict):
        return {key: to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json_value(item) for item in value]
    return value
