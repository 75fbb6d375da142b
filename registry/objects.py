"""The object store: files under keys, in a local folder or at any URL that fsspec knows.

Keys are made of our ids, never of names that users give.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from finetuner.excepts import DataError
from registry.names import new_id
from registry.remote import RemoteFiles

BLOCK = 1 << 20


class ObjectStore:
    """Objects are written whole or not at all, and never changed after that.

    :param url: a folder, or a URL such as `s3://bucket/prefix`.
    :raises RegistryError: the URL cannot be used; the sentence says why.
    """

    def __init__(self, url: str):
        self._remote = RemoteFiles(url) if '://' in url and not url.startswith(('file://', 'local://')) else None
        self.is_local = self._remote is None
        if self.is_local:
            self._root = Path(url.partition('://')[2] if '://' in url else url).absolute()
            self._root.mkdir(parents=True, exist_ok=True)

    def put(self, path: Path, key: str) -> None:
        """Store the file at `path` as the object `key`. A local store moves the file where it can."""
        if self._remote is not None:
            self._remote.put(path, key)
            return
        target = self._local(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.stat().st_dev != target.parent.stat().st_dev:
            path = Path(shutil.copyfile(path, target.with_name(f'{target.name}.part')))
        sync(path)
        path.chmod(0o440)
        os.replace(path, target)
        sync(target.parent)

    def fetch(self, key: str, sha256: str, directory: Path) -> Path:
        """The object as a file on this machine: that of the store itself if it is local, else a copy in `directory`.

        :raises DataError: it is missing, or its sha256 is another.
        """
        try:
            if self._remote is None:
                path = self._local(key)
            else:
                directory.mkdir(parents=True, exist_ok=True)
                path = directory / key.rpartition('/')[2]
                if not (path.exists() and file_digest(path) == sha256):
                    self._download(self._remote, key, path)
            if file_digest(path) == sha256:
                return path
        except FileNotFoundError as error:
            raise DataError(f'{key} is missing in the object store') from error
        raise DataError(f'{key} in the object store is not what was stored: its sha256 is another')

    def read(self, key: str, offset: int, length: int) -> bytes:
        """The bytes from `offset` on, at most `length` of them.

        :raises FileNotFoundError: there is no such object.
        """
        if self._remote is not None:
            return self._remote.read(key, offset, length)
        with self._local(key).open('rb') as file:
            file.seek(offset)
            return file.read(length)

    def delete(self, key: str) -> None:
        """Remove the object and what it leaves behind, if there is one."""
        if self._remote is not None:
            self._remote.delete(key)
            return
        target = self._local(key)
        target.with_name(f'{target.name}.part').unlink(missing_ok=True)
        target.unlink(missing_ok=True)

    def _download(self, remote: RemoteFiles, key: str, target: Path) -> None:
        # of its own: others may fetch the same object into the same folder at the same time
        aside = target.with_name(f'{target.name}.{new_id()}.part')
        try:
            remote.download(key, aside)
            sync(aside)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)

    def _local(self, key: str) -> Path:
        return self._root / key


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def copy_hashed(source: Path, target: Path) -> tuple[str, int]:
    """Copy a file and return the sha256 and the number of the bytes that were written."""
    digest, size = hashlib.sha256(), 0
    with source.open('rb') as reader, target.open('wb') as writer:
        while block := reader.read(BLOCK):
            digest.update(block)
            size += writer.write(block)
    return digest.hexdigest(), size


def sync(path: Path) -> None:
    """Have the file or folder on the disk, not only in the system's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
