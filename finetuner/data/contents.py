"""What a content is: a text, an image, a mesh or a tensor."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from finetuner.excepts import DataError

MODALITIES = ('text', 'image', 'mesh', 'tensor')
IMAGE_SUFFIXES = frozenset({'.jpg', '.jpeg', '.png', '.gif', '.bmp', '.webp', '.tif', '.tiff', '.ppm'})
MESH_SUFFIXES = frozenset({'.obj', '.off', '.ply', '.stl', '.glb'})

_IMAGE_STARTS = (b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'GIF87a', b'GIF89a', b'II*\0', b'MM\0*', b'P6\n', b'P5\n')
_MESH_STARTS = (b'glTF', b'ply\n', b'ply\r\n', b'OFF', b'solid ')
_OBJ_VERTEX = re.compile(rb'^v[ \t]+-?[0-9.]', re.MULTILINE)
_DATA_URI = re.compile(r'data:(?P<type>[^;,\s]*)(?P<options>(;[^;,\s]*)*),', re.IGNORECASE)


def modality_of(
    *,
    modality: str | None = None,
    text: str | None = None,
    uri: str | None = None,
    blob: bytes | None = None,
    tensor: Any = None,
) -> str | None:
    """One of `MODALITIES`, or None if it cannot be told. What is said goes before what is found.

    :param modality: what the content is said to be.
    :raises DataError: it is said to be what it cannot be.
    """
    found = _find(text, uri, blob, tensor)
    if modality is None:
        return found
    if modality not in MODALITIES:
        raise DataError(f'the modality {modality!r} is unknown: it is one of {", ".join(MODALITIES)}')
    held = 'text' if text is not None else 'tensor' if tensor is not None else 'blob' if blob is not None else 'uri'
    if (modality == 'text') != (held == 'text') or (modality == 'tensor' and held != 'tensor'):
        raise DataError(f'the modality is {modality!r}, and the content a {held}')
    return modality


def _find(text: str | None, uri: str | None, blob: bytes | None, tensor: Any) -> str | None:
    if text is not None:
        return 'text'
    if blob is not None:
        return modality_of_bytes(blob) or modality_of_uri(uri or '')
    if tensor is not None:  # the URI says where it is from
        return modality_of_uri(uri or '') or 'tensor'
    return modality_of_uri(uri or '')


def modality_of_uri(uri: str) -> str | None:
    """'image' or 'mesh' by the ending, or by the type and content of a `data:` URI; else None."""
    if is_data_uri(uri):
        kind = uri[5:].partition('/')[0].lower()
        if kind in ('image', 'model'):
            return 'image' if kind == 'image' else 'mesh'
        return modality_of_bytes(decode_data_uri(uri))
    path = urlsplit(uri).path if is_url(uri) else uri
    dot = path.rfind('.')
    suffix = path[dot:].lower() if dot >= 0 else ''
    return 'image' if suffix in IMAGE_SUFFIXES else 'mesh' if suffix in MESH_SUFFIXES else None


def modality_of_bytes(content: bytes) -> str | None:
    """'image' or 'mesh' by how the bytes of a file begin, else None."""
    if content.startswith(_IMAGE_STARTS) or (content[:4] == b'RIFF' and content[8:12] == b'WEBP'):
        return 'image'
    if content[:2] == b'BM' and int.from_bytes(content[2:6], 'little') in (len(content), 0):
        return 'image'
    if content.startswith(_MESH_STARTS) or _is_binary_stl(content) or _OBJ_VERTEX.search(content[:4096]):
        return 'mesh'
    return None


def _is_binary_stl(content: bytes) -> bool:
    """80 bytes of anything, the number of triangles, and 50 bytes for each."""
    return len(content) > 84 and len(content) == 84 + 50 * int.from_bytes(content[80:84], 'little')


def is_url(uri: str) -> bool:
    return uri[:8].lower().startswith(('http://', 'https://'))


def is_data_uri(uri: str) -> bool:
    return uri[:5].lower() == 'data:' and _DATA_URI.match(uri) is not None


def decode_data_uri(uri: str) -> bytes:
    """
    :raises DataError: it is no `data:` URI, or says to be base64 and is not.
    """
    found = _DATA_URI.match(uri)
    if found is None:
        raise DataError(f'{uri[:40]!r} is no data: URI')
    content = uri[found.end() :]
    if not found['options'].lower().endswith(';base64'):
        return unquote_to_bytes(content)
    try:
        return base64.b64decode(unquote_to_bytes(content), validate=True)
    except binascii.Error as error:
        raise DataError(f'the data: URI {uri[:40]!r} is not base64: {error}') from error
