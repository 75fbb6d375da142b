"""Unpacking an artifact's zip without trusting it: every entry is checked before the first byte is written."""

from __future__ import annotations

import copy
import hashlib
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from finetuner.artifact.manifest import MAX_YAML, METADATA, FileInfo, Metadata, check_path, load_yaml
from finetuner.excepts import ArtifactError

MAX_BYTES = 16 << 30  # unpacked
_MAX_ENTRIES = 10_000
_MAX_DIRECTORY = 16 << 20
_MAX_RATIO = 100  # of what a zip unpacks to, beyond the first _SMALL bytes, to its size
_SMALL = 64 << 20
_CHUNK = 1 << 20


def unpack(file: IO[bytes], directory: Path, max_bytes: int = MAX_BYTES) -> None:
    """Unpack an artifact, without its top folder, and check every file's size and sha256 on the way.

    :param file: the zip, seekable.
    :param directory: an empty directory.
    :param max_bytes: the most that the zip may say it unpacks to.
    :raises ArtifactError: the zip is damaged or unsafe, or does not hold just the files that its metadata lists. What
        was written up to then stays in `directory`.
    """
    with _archive(file) as archive:
        entries = _check_entries(archive.infolist(), file.seek(0, os.SEEK_END), max_bytes)
        metadata_entry = entries.pop(METADATA, None)
        if metadata_entry is None:
            raise ArtifactError(f'the zip is not an artifact: it has no {METADATA} in its folder')
        if metadata_entry.file_size > MAX_YAML:
            raise ArtifactError(f'{METADATA} is larger than {MAX_YAML >> 20} MiB')
        _extract(archive, metadata_entry, directory / METADATA)
        metadata = Metadata.from_dict(load_yaml((directory / METADATA).read_bytes(), METADATA))
        check_listing(set(entries), metadata)
        for path, entry in entries.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            check_file(path, _extract(archive, entry, directory / path), metadata.files[path])


def check_listing(found: set[str], metadata: Metadata) -> None:
    """:raises ArtifactError: a file that the metadata lists is not there, or one is there that it does not list."""
    if missing := sorted(set(metadata.files) - found):
        raise ArtifactError(f'the artifact lacks a file that its {METADATA} lists: {_some(missing)}')
    if extra := sorted(found - set(metadata.files)):
        raise ArtifactError(f'the artifact has a file that its {METADATA} does not list: {_some(extra)}')


def check_file(path: str, found: FileInfo, expected: FileInfo) -> None:
    """:raises ArtifactError: the file is not the one that was packed."""
    if found != expected:
        what = f'{found.size} bytes instead of {expected.size}' if found.size != expected.size else 'its sha256 differs'
        raise ArtifactError(f'the file {path} is not the one that was packed ({what}): the artifact was altered')


@contextmanager
def _archive(file: IO[bytes]) -> Iterator[ZipFile]:
    """The zip in `file`; whatever turns out to be wrong with the format inside the block becomes an ArtifactError."""
    start = file.read(4)
    file.seek(0)
    try:
        _check_directory(file)
        with ZipFile(file) as archive:
            yield archive
    except ArtifactError:
        raise
    except (BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, struct.error, zlib.error) as error:
        if not start.startswith(b'PK'):
            raise ArtifactError('this is not a zip file') from error
        raise ArtifactError(f'the zip file is truncated or damaged: {error}') from error


def _check_directory(file: IO[bytes]) -> None:
    """Check what the end of the file says of the directory of entries, which zipfile reads as a whole."""
    # the very function that ZipFile asks: another reader could find another record
    record = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if record is None:
        raise BadZipFile('the record at its end is missing')
    _, _, _, _, entries, size, *_ = record
    _check_count(entries)
    if size > _MAX_DIRECTORY:
        raise ArtifactError(f'the zip has a directory of {size} bytes: the limit is {_MAX_DIRECTORY >> 20} MiB')


def _check_count(entries: int) -> None:
    if entries > _MAX_ENTRIES:
        raise ArtifactError(f'the zip has {entries} entries: an artifact has at most {_MAX_ENTRIES}')


def _check_entries(infos: list[ZipInfo], size: int, max_bytes: int) -> dict[str, ZipInfo]:
    """The entries of files by their path inside the one top folder."""
    _check_count(len(infos))  # the record at the end may lie
    seen: set[str] = set()
    roots: set[str] = set()
    entries: dict[str, ZipInfo] = {}
    for info in infos:
        # `filename` has been tidied by zipfile
        is_directory = info.orig_filename.endswith('/')
        path = check_path(info.orig_filename.removesuffix('/') if is_directory else info.orig_filename)
        # some file systems ignore case, some the way in which accents are written
        key = unicodedata.normalize('NFC', path).casefold()
        if key in seen:
            raise ArtifactError(f'the zip has two entries for {path!r}')
        seen.add(key)
        _check_entry(info, path, is_directory)
        root, _, inner = path.partition('/')
        roots.add(root)
        if inner and not is_directory:
            entries[inner] = info
        elif not is_directory:
            raise ArtifactError(f'the zip is not an artifact: the file {path!r} is in no folder')
    total = sum(info.file_size for info in infos)
    if total > max_bytes:
        raise ArtifactError(f'the zip says that it unpacks to {total} bytes: the limit is {max_bytes} (a zip bomb?)')
    if total > _SMALL + _MAX_RATIO * size:
        raise ArtifactError(f'the zip unpacks from {size} to {total} bytes: this looks like a zip bomb')
    if len(roots) != 1:
        raise ArtifactError(f'the zip is not an artifact: it has {len(roots)} top folders instead of one')
    for path in entries:
        if parents := [str(parent) for parent in PurePosixPath(path).parents if str(parent) in entries]:
            raise ArtifactError(f'the zip has {parents[0]!r} both as a file and as a folder')
    return entries


def _check_entry(info: ZipInfo, path: str, is_directory: bool) -> None:
    if info.flag_bits & 0x41:
        raise ArtifactError(f'the file {path!r} in the zip is encrypted')
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise ArtifactError(f'the zip has a symbolic link, which is unsafe: {path!r}')
    if kind not in (0, stat.S_IFDIR if is_directory else stat.S_IFREG):
        raise ArtifactError(f'the zip has an entry that is neither a file nor a directory: {path!r}')
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ArtifactError(f'the file {path!r} in the zip is compressed in an unusual way: use store or deflate')
    if info.compress_type == ZIP_STORED and info.compress_size != info.file_size:
        raise ArtifactError(f'the file {path!r} in the zip has two sizes: {info.compress_size} and {info.file_size}')
    if info.header_offset < 0:
        raise ArtifactError(f'the zip file is truncated or damaged: the file {path!r} lies outside')


def _extract(archive: ZipFile, info: ZipInfo, target: Path) -> FileInfo:
    # zipfile stops at the declared size without a word. Asked for one byte more, and without the checksum that it
    # would then compare too early, it shows an entry that goes on. The sha256 does the checksum's work.
    longer = copy.copy(info)
    longer.file_size += 1
    longer.CRC = None  # type: ignore[assignment]
    digest, size = hashlib.sha256(), 0
    with archive.open(longer) as source, target.open('xb') as file:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > info.file_size:
                raise ArtifactError(
                    f'the file {target.name!r} in the zip goes on after the {info.file_size} bytes that it declares '
                    '(a zip bomb?)'
                )
            file.write(chunk)
            digest.update(chunk)
    return FileInfo(size, digest.hexdigest())


def _some(paths: list[str]) -> str:
    return ', '.join(paths[:5]) + (f' and {len(paths) - 5} more' if len(paths) > 5 else '')
