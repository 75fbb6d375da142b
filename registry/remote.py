"""Files at a URL that fsspec knows, S3 before all. Nothing is taken from a cache, and a fork gets connections anew."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from finetuner.excepts import RegistryError, UnavailableError

PART_BYTES = 8 << 20
"""Of a file that is sent in parts; as many as `PARTS_AT_ONCE` are in memory."""
PARTS_AT_ONCE = 4
MAX_PARTS = 9_000
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RemoteFiles:
    """Files below a URL. Safe for threads and for forks.

    :param url: such as `s3://bucket/prefix`. The keys and the endpoint of S3 are those of the environment, of the
        files and of the roles that every AWS tool knows.
    :raises RegistryError: the URL cannot be used; the sentence says why.

    Each call raises `UnavailableError` where the store does not do what it is asked for.
    """

    def __init__(self, url: str):
        self._url = url
        self._pid = os.getpid()
        self._files, self._root = self._connect()
        self.is_s3 = 's3' in self._files.protocol
        if self.is_s3:
            self._check_bucket()

    def put(self, path: Path, key: str) -> None:
        """Send a file: there is all of it at the end, or nothing."""
        at = self._at(key)
        with self._asked() as files:
            if not self.is_s3:
                files.makedirs(at.rpartition('/')[0], exist_ok=True)
                files.put_file(str(path), at)
                return
            part = max(PART_BYTES, -(-path.stat().st_size // MAX_PARTS))
            files.put_file(str(path), at, chunksize=part, max_concurrency=PARTS_AT_ONCE)

    def read(self, key: str, offset: int, length: int) -> bytes:
        """The bytes from `offset` on, at most `length` of them; `offset` is not beyond the end.

        :raises FileNotFoundError: there is no such file.
        """
        with self._asked() as files:
            return bytes(files.cat_file(self._at(key), start=offset, end=offset + length))

    def download(self, key: str, target: Path) -> None:
        """
        :raises FileNotFoundError: there is no such file.
        """
        with self._asked() as files:
            files.get_file(self._at(key), str(target))

    def delete(self, key: str) -> None:
        """Remove the file, if there is one, and what an upload that was cut off has left."""
        with self._asked() as files:
            with suppress(FileNotFoundError):
                files.rm_file(self._at(key))
            if self.is_s3:
                self._abort_uploads(files, key)

    def _abort_uploads(self, files: Any, key: str) -> None:
        """A process that was killed while it sent parts has left them in the bucket, where no listing shows them."""
        bucket, path, _ = files.split_path(self._at(key))
        found = files.call_s3('list_multipart_uploads', Bucket=bucket, Prefix=path)
        for upload in found.get('Uploads') or []:
            with suppress(FileNotFoundError):
                files.call_s3('abort_multipart_upload', Bucket=bucket, Key=upload['Key'], UploadId=upload['UploadId'])

    def _connect(self) -> tuple[Any, str]:
        try:
            # an instance of our own: fsspec shares them among all who name the same URL, with what they have listed
            return fsspec.core.url_to_fs(self._url, skip_instance_cache=True, use_listings_cache=False)
        except ImportError as error:
            scheme = self._url.partition('://')[0]
            extra = 'pip install "finetuner[s3]"' if scheme in ('s3', 's3a') else str(error)
            raise RegistryError(f'Objects at {scheme}:// need a package that is not installed: {extra}') from error
        except ValueError as error:
            raise RegistryError(f'The URL of the objects cannot be used: {error}') from error

    @contextmanager
    def _asked(self) -> Iterator[Any]:
        """What speaks to the store.

        :raises UnavailableError: the store is away, or refuses. What it says of it names hosts, buckets and keys.
        """
        files = self._client()
        try:
            yield files
        except Exception as error:
            if not self._is_of_store(error):
                raise
            raise UnavailableError('The object store cannot be reached: try again in a moment') from error

    def _is_of_store(self, error: Exception) -> bool:
        if isinstance(error, OSError):
            # those that tell of a file are of the disk here
            return not isinstance(error, FileNotFoundError) and error.filename is None and error.errno not in FULL
        if not self.is_s3:
            return False
        from aiohttp import ClientError as BrokenConnection  # of s3fs, which is here, as this is S3
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        return isinstance(error, BotoCoreError | ClientError | ResponseParserError | BrokenConnection)

    def _client(self) -> Any:
        if self._pid != os.getpid():
            self._files, self._root = self._connect()
            self._pid = os.getpid()
        return self._files

    def _check_bucket(self) -> None:
        from botocore.exceptions import BotoCoreError  # of s3fs, which is here, as this is S3

        bucket = self._root.partition('/')[0]
        try:
            self._files.call_s3('head_bucket', Bucket=bucket)
        except FileNotFoundError as error:
            raise RegistryError(f'There is no bucket {bucket!r} for the objects: make it first') from error
        except PermissionError as error:
            raise RegistryError(
                f'The bucket {bucket!r} of the objects may not be used with these credentials: they need '
                's3:ListBucket, s3:ListBucketMultipartUploads, s3:GetObject, s3:PutObject, s3:DeleteObject and '
                's3:AbortMultipartUpload'
            ) from error
        except (BotoCoreError, OSError) as error:
            raise RegistryError(f'The bucket {bucket!r} of the objects cannot be reached: {error}') from error

    def _at(self, key: str) -> str:
        return f'{self._root}/{key}'
