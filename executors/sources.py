"""Reading files for a client: only from where the operator allows it."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from finetuner.data import CSVOptions, read_data
from finetuner.data.links import Links, open_url
from finetuner.data.reading import COLUMNAR_SUFFIXES
from finetuner.documents import Document
from finetuner.excepts import DataError
from finetuner.inference.remote import without_secrets

MAX_REMOTE_BYTES = 16 << 30
"""Of a file elsewhere. A Parquet or Arrow file is copied to a temporary file to be read."""


def read_uri(uri: str, options: CSVOptions, roots: Sequence[Path], schemes: Sequence[str]) -> Iterator[Document]:
    """The documents of the file at `uri` (CSV, JSONL, Parquet or Arrow), read while they are consumed.

    What the file names in its turn, such as images, is read under the same conditions.

    :param uri: an absolute path or `file://` URI below one of `roots`, or the URI of another of `schemes`.
    :param roots: folders whose files may be read. A link that leads out of them is refused.
    :param schemes: such as 'file', 's3', 'https'.
    :raises DataError: reading it is not allowed, there is no such file, or a row is malformed.
    """
    scheme, separator, _ = uri.partition('://')
    scheme = scheme.lower() if separator else 'file'
    if scheme not in schemes:
        raise DataError(
            f'this service does not read {scheme}:// URIs, only {", ".join(schemes) or "none"}: '
            'its operator allows more with FINETUNER_INGEST_SCHEMES'
        )
    shown = without_secrets(uri)
    links = allowed_links(roots, schemes)
    try:
        if scheme == 'file':
            yield from read_data(_allowed_path(uri, roots), options, shown, links=links)
        elif (suffix := PurePosixPath(urlsplit(uri).path).suffix.lower()) in COLUMNAR_SUFFIXES:
            with tempfile.NamedTemporaryFile(suffix=suffix) as copy:
                with open_url(uri, schemes) as source:
                    shutil.copyfileobj(_Limited(source, shown), copy, 1 << 20)
                copy.flush()
                # paths in it begin nowhere: it lies here by chance
                yield from read_data(Path(copy.name), options, shown, links=links.rooted())
        else:
            with open_url(uri, schemes) as source:
                limited = io.BufferedReader(_Limited(source, shown), 1 << 20)
                with io.TextIOWrapper(limited, options.encoding, newline='') as file:
                    yield from read_data(file, options, shown, links=links.rooted())
    except DataError:
        raise
    except Exception as error:  # those of fsspec's backends have no common base
        has_secrets = shown != uri or '://' in str(error)
        reason = type(error).__name__ if has_secrets else str(error) or type(error).__name__
        raise DataError(f'{shown} cannot be read: {reason}') from None


class _Limited(io.RawIOBase):
    """A file that is open elsewhere, as far as it is not too large."""

    def __init__(self, source: IO[bytes], shown: str):
        self.source, self.shown, self.left = source, shown, MAX_REMOTE_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.source.read(len(buffer))
        self.left -= len(piece)
        if self.left < 0:
            raise DataError(f'{self.shown} is larger than the limit of {MAX_REMOTE_BYTES >> 20} MiB: send it in parts')
        buffer[: len(piece)] = piece
        return len(piece)


def allowed_roots(names: Sequence[str] | None, variable: str = 'FINETUNER_INGEST_ROOTS') -> list[Path]:
    """The folders whose files clients may name.

    :param names: None are those of the environment variable.
    """
    if names is None:
        names = os.environ.get(variable, '').split(os.pathsep)
    return [Path(name).expanduser().absolute() for name in names if name]


def allowed_schemes(
    names: Sequence[str] | None, variable: str = 'FINETUNER_INGEST_SCHEMES', default: str = 'file'
) -> list[str]:
    """The schemes of the URIs that clients may name, in lower case.

    :param names: None are those of the environment variable.
    :param default: those where it is not set.
    """
    if names is None:
        names = os.environ.get(variable, default).split(',')
    return [name.strip().lower() for name in names if name.strip()]


def allowed_links(roots: Sequence[Path], schemes: Sequence[str]) -> Links:
    """What opens the URIs that clients name in documents and data: below the roots, and of these schemes."""
    return Links(check=_check(roots if 'file' in schemes else []), schemes=schemes)


def _check(roots: Sequence[Path]) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        # one answer for all that lies outside, whether it exists or not
        if not any(path.is_relative_to(root.resolve()) for root in roots):
            raise DataError('it names a file that is not below a folder that this service may read')

    return check


def _allowed_path(uri: str, roots: Sequence[Path]) -> Path:
    if not roots:
        raise DataError('this service reads no files: its operator allows folders with FINETUNER_INGEST_ROOTS')
    path, shown = uri, without_secrets(uri)
    if '://' in uri:
        parts = urlsplit(uri)
        if parts.netloc not in ('', 'localhost'):
            raise DataError(f'{shown} is on another machine, {parts.hostname}: files are written file:///path')
        path = unquote(parts.path)
    if not path.startswith('/') or '\0' in path:
        raise DataError(f'{shown} is not an absolute path')
    real = Path(path).resolve()
    # one answer for all that lies outside, whether it exists or not
    if not any(real.is_relative_to(root.resolve()) for root in roots):
        raise DataError(f'{shown} is not below a folder that this service may read ({", ".join(map(str, roots))})')
    if not real.is_file():
        raise DataError(f'there is no file {shown}')
    return real
