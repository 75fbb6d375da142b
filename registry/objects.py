"""The object store: files under keys, in a local folder or at any URL that fsspec knows.

Keys are made of our ids, never of names that users give.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from finetuner.excepts import DataError

BLOCK = 1 << 20


class ObjectStore:
    """Objects are written whole or not at all, and never changed after that.

    :param url: a folder, or a URL such as `s3://bucket/prefix`.
    """

    def __init__(self, url: str):
        self._files: Any
        self._files, self._root = fsspec.core.url_to_fs(url)
        self.is_local = isinstance(self._files, LocalFileSystem)
        if self.is_local:
            Path(self._root).mkdir(parents=True, exist_ok=True)

    def put(self, path: Path, key: str) -> None:
        """Store the file at `path` as the object `key`. A local store moves the file where it can."""
        if not self.is_local:
            self._files.makedirs(self._at(key).rpartition('/')[0], exist_ok=True)
            self._files.put_file(str(path), self._at(key))
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
            path = self._local(key)
            if not self.is_local:
                directory.mkdir(parents=True, exist_ok=True)
                path = directory / key.rpartition('/')[2]
                if not (path.exists() and file_digest(path) == sha256):
                    self._download(key, path)
            if file_digest(path) == sha256:
                return path
        except FileNotFoundError as error:
            raise DataError(f'{key} is missing in the object store') from error
        raise DataError(f'{key} in the object store is not what was stored: its sha256 is another')

    def read(self, key: str, offset: int, length: int) -> bytes:
        """The bytes from `offset` on, at most `length` of them.

        :raises FileNotFoundError: there is no such object.
        """
        if self.is_local:
            with self._local(key).open('rb') as file:
                file.seek(offset)
                return file.read(length)
        with self._files.open(self._at(key), 'rb', cache_type='none') as file:
            file.seek(offset)
            return file.read(length)

    def delete(self, key: str) -> None:
        """Remove the object and what it leaves behind, if there is one."""
        if not self.is_local:
            if self._files.exists(self._at(key)):
                self._files.rm_file(self._at(key))
            return
        target = self._local(key)
        target.with_name(f'{target.name}.part').unlink(missing_ok=True)
        target.unlink(missing_ok=True)

    def _download(self, key: str, target: Path) -> None:
        aside = target.with_name(f'{target.name}.{os.getpid()}.part')
        try:
            self._files.get_file(self._at(key), str(aside))
            sync(aside)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)

    def _at(self, key: str) -> str:
        return f'{self._root}/{key}'

    def _local(self, key: str) -> Path:
        return Path(self._root, key)


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
