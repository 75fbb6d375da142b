"""Checksums of bodies, as RFC 9530 (`Content-Digest`) and RFC 3230 (`Digest`) write them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from contextlib import suppress

from fastapi.exceptions import HTTPException
from starlette.datastructures import Headers

CONTENT = re.compile(r'\s*sha-256\s*=\s*:([A-Za-z0-9+/=]*):', re.IGNORECASE)
PLAIN = re.compile(r'\s*sha-256\s*=\s*([A-Za-z0-9+/=]*)', re.IGNORECASE)


def check_digest(raw: bytes, headers: Headers, sha256: str | None) -> str:
    """The sha256 of `raw`, after all that the client said about it was found to be true.

    :raises HTTPException: 400: it is another, or a header has no sha-256.
    """
    found = hashlib.sha256(raw)
    given = [] if sha256 is None else [('sha256', sha256)]
    for name, pattern in (('Content-Digest', CONTENT), ('Digest', PLAIN)):
        if name in headers:
            given.append((name, _read(name, pattern, headers[name])))
    for name, value in given:
        if value != found.hexdigest():
            raise HTTPException(
                400, f'{name} says that the sha256 is {value}, but it is {found.hexdigest()}: send the part again'
            )
    return found.hexdigest()


def write_digest(sha256: str) -> str:
    """The value of `Content-Digest` or `Repr-Digest`."""
    return f'sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:'


def _read(name: str, pattern: re.Pattern[str], value: str) -> str:
    for entry in value.split(','):
        if match := pattern.fullmatch(entry.rstrip()):
            with suppress(binascii.Error):
                digest = base64.b64decode(match[1], validate=True)
                if len(digest) == hashlib.sha256().digest_size:
                    return digest.hex()
    form = 'sha-256=:<base64>:' if name == 'Content-Digest' else 'sha-256=<base64>'
    raise HTTPException(400, f'{name} has no sha-256 that can be checked: write {form}')
