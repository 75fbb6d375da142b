"""Reading the files that data names by path or URL, within limits."""

from __future__ import annotations

import http.client
import importlib.util
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from finetuner.data.contents import decode_data_uri, is_data_uri
from finetuner.excepts import DataError

MAX_BYTES = {'image': 64 << 20, 'mesh': 256 << 20, 'text': 1 << 20}
TIMEOUT = 20  # seconds without a byte
DEADLINE = 120  # seconds for one file

_CHUNK = 1 << 20


class Links:
    """Opens what cells and documents point at.

    Nothing but `http(s)://` is ever followed to another address, and from there nowhere but to `http(s)://`,
    of these the schemes that are allowed.

    :param folder: where relative paths begin; without one, in the working folder.
    :param check: is given every path before it is opened, resolved, and raises a :class:`DataError` if it may not be.
        Where there is one, relative paths need `folder`.
    :param schemes: of the URLs that may be fetched; None is all. `file` and `data` need no leave.
    :param has_folder: False keeps `folder` as it is, whatever file names the paths.
    """

    def __init__(
        self,
        folder: Path | None = None,
        check: Callable[[Path], None] | None = None,
        schemes: Collection[str] | None = None,
        has_folder: bool = True,
    ):
        self.folder, self.check, self.schemes, self.has_folder = folder, check, schemes, has_folder

    def at(self, folder: Path | None) -> Links:
        """The same, for paths that begin in another folder."""
        return Links(folder, self.check, self.schemes) if self.has_folder else self

    def rooted(self) -> Links:
        """The same, for absolute paths alone: relative ones begin nowhere."""
        return Links(None, self.check, self.schemes, has_folder=False)

    def read(self, uri: str, kind: str) -> bytes:
        """The content of a file.

        :param uri: a path, or a URI of one of the schemes file, data, http, https, or of those that fsspec knows.
        :param kind: 'image', 'mesh' or 'text': how large the file may be.
        :raises DataError: it may not or cannot be read, is empty, or is too large.
        """
        limit = MAX_BYTES[kind]
        if is_data_uri(uri):
            content = decode_data_uri(uri)
            _check_size(len(content), limit, f'{uri[:40]}…')
            return content
        scheme, separator, _ = uri.partition('://')
        if not separator or scheme.lower() == 'file':
            return self._read_path(uri, limit)
        if self.schemes is not None and scheme.lower() not in self.schemes:
            raise DataError(f'{scheme.lower()}:// URIs are not read here: put the files beside the data')
        return _fetch(uri, limit, self.schemes)

    def path(self, uri: str) -> Path:
        """Where a file is, by a path or `file://` URI.

        :raises DataError: there is none, or it may not be read.
        """
        try:
            return self._find(uri)
        except DataError:
            raise
        except (OSError, RuntimeError, ValueError) as error:  # too long, in a circle, of a user that there is not, ...
            shown = uri if len(uri) <= 80 else f'{uri[:80]}…'
            reason = getattr(error, 'strerror', None) or error
            raise DataError(f'{shown!r} is no path that can be read: {reason}') from error

    def _find(self, uri: str) -> Path:
        if '://' in uri:
            parts = urlsplit(uri)
            if parts.netloc not in ('', 'localhost'):
                raise DataError(f'{uri} is on another machine: files are written file:///path')
            uri = unquote(parts.path)
        if '\0' in uri:
            raise DataError(f'{uri!r} is no path')
        path = Path(uri) if self.check else Path(uri).expanduser()
        if path.is_absolute():
            candidates = [path]
        elif self.check is not None:
            candidates = [] if self.folder is None else [self.folder / path]
        else:
            candidates = [*([self.folder / path] if self.folder else []), Path.cwd() / path]
        for candidate in candidates:
            real = candidate.resolve()
            if self.check is not None:
                self.check(real)
            if real.is_file():
                return real
        where = f' in {" or ".join(str(at.parent) for at in candidates)}' if self.check is None else ''
        raise DataError(f'there is no file {uri}{"" if path.is_absolute() else where}')

    def _read_path(self, uri: str, limit: int) -> bytes:
        try:
            path = self.path(uri)
            with path.open('rb') as file:
                # a read makes room for all that it is asked for
                content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
        except OSError as error:
            raise DataError(f'{uri} cannot be read: {error.strerror or type(error).__name__}') from error
        _check_size(len(content), limit, uri)
        return content


def _check_size(size: int, limit: int, shown: str) -> None:
    if size == 0:
        raise DataError(f'{shown} is empty')
    if size > limit:
        raise DataError(f'{shown} is larger than the limit of {limit >> 20} MiB')


def _fetch(url: str, limit: int, schemes: Collection[str] | None) -> bytes:
    from finetuner.inference.remote import without_secrets

    shown = without_secrets(url)
    try:
        with open_url(url, schemes) as source:
            content = _copy(source, limit)
    except DataError as error:
        raise DataError(f'{shown} {error}') from None
    except Exception as error:  # those of fsspec's backends have no common base
        # from None: the error may show the secrets of the URL
        raise DataError(f'{shown} cannot be fetched: {_reason(error, shown != url)}') from None
    _check_size(len(content), limit, shown)
    return content


def open_url(url: str, schemes: Collection[str] | None) -> Any:
    """Open a file elsewhere, in binary mode, as a context manager.

    :param schemes: where `http(s)://` may lead to; None is anywhere in the web.
    :raises DataError: it leads elsewhere, or nothing here reads URLs of its kind.
    """
    if url.partition('://')[0].lower() in ('http', 'https'):
        request = urllib.request.Request(url, headers={'User-Agent': 'finetuner'})
        return _web(schemes).open(request, timeout=TIMEOUT)
    if importlib.util.find_spec('fsspec') is None:
        raise DataError('cannot be fetched: URLs of this kind need fsspec, which is missing')
    import fsspec

    return fsspec.open(url, 'rb')


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to URLs of the schemes that may be fetched, None for all that the opener knows."""

    def __init__(self, schemes: Collection[str] | None):
        self.schemes = schemes

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme.lower()
        if self.schemes is not None and scheme not in self.schemes:
            raise DataError(f'leads to {scheme}://, and such URIs are not read here')
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _web(schemes: Collection[str] | None) -> urllib.request.OpenerDirector:
    """An opener that knows the web and nothing else: a redirect leads to no file and to no FTP server."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    opener.add_handler(_Redirects(schemes))
    return opener


def _copy(source: IO[bytes], limit: int) -> bytes:
    end = time.monotonic() + DEADLINE
    pieces, size = [], 0
    # read1 gives what is there: a server that sends byte by byte would never fill a larger piece
    read = getattr(source, 'read1', source.read)
    while size <= limit and (piece := read(min(_CHUNK, limit + 1 - size))):
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > end:
            raise DataError(f'took longer than {DEADLINE} seconds')
    headers = getattr(source, 'headers', None)
    expected = headers.get('Content-Length') if headers is not None else None
    if expected is not None and size < min(int(expected), limit):
        missing = http.client.IncompleteRead(b'', int(expected) - size)
        raise DataError(f'broke off after {size} of {expected} bytes: try again') from missing
    return b''.join(pieces)


def _reason(error: BaseException, has_secrets: bool) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f'HTTP status {error.code} ({http.client.responses.get(error.code, "unknown")})'
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return _reason(error.reason, has_secrets)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if has_secrets or isinstance(error, http.client.HTTPException):
        return type(error).__name__
    return str(error) or type(error).__name__
