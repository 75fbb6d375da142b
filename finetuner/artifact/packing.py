"""Writing artifacts: the same bytes for the same content, and complete or not there at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from finetuner.artifact.manifest import (
    CONFIG,
    METADATA,
    METRICS,
    SHARED,
    FileInfo,
    Metadata,
    ModelInfo,
    check_name,
    check_path,
    dump_yaml,
)
from finetuner.excepts import ArtifactError

_CHUNK = 1 << 20


def pack(
    directory: str | Path,
    target: str | Path,
    *,
    name: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    models: Mapping[str, ModelInfo],
) -> Path:
    """Write an artifact.

    Files are stored uncompressed (weights hardly compress) in sorted order, with one fixed time and mode, so that equal
    content gives equal bytes wherever it is packed.

    :param directory: has the models in `models/<name>/`, and what several of them share in `models/clip/`, see
        :data:`SHARED`; nothing else of it is taken, and nothing in it changes.
    :param target: the zip to write. It is replaced when the new one is complete.
    :param name: the run's name; the folder inside the zip.
    :param config: plain values.
    :param metrics: plain values.
    :param models: what each model does, by name.
    :return: `target`.
    :raises ArtifactError: a name, a path or a value cannot be stored, or a model has no files.
    """
    directory, target = Path(directory), Path(target)
    check_name('artifact', name)
    sources: dict[str, Path | bytes] = {CONFIG: dump_yaml(config, CONFIG), METRICS: dump_yaml(metrics, METRICS)}
    for model in models:
        sources.update(_model_files(directory, check_name('model', model)))
        if (shared := SHARED.get(model)) and (directory / 'models' / shared).is_dir():
            sources.update(_model_files(directory, shared))

    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f'.{target.name}.{secrets.token_hex(8)}')
    try:
        with aside.open('xb') as file:
            with ZipFile(file, 'w', ZIP_STORED) as archive:
                files = {path: _add(archive, f'{name}/{path}', sources[path]) for path in sorted(sources)}
                metadata = Metadata(name, dict(models), files).to_dict()
                # the way it will be read: what cannot be opened is not written
                Metadata.from_dict(metadata)
                _add(archive, f'{name}/{METADATA}', dump_yaml(metadata, METADATA))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)
    return target


def _model_files(directory: Path, model: str) -> Iterator[tuple[str, Path]]:
    root = directory / 'models' / model
    if not root.is_dir():
        raise ArtifactError(f'there is no directory {root} with the files of the model {model!r}')
    for path in root.rglob('*'):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactError(f'{path} is neither a file nor a directory: artifacts hold no links')
        if path.is_file():
            yield check_path(path.relative_to(directory).as_posix()), path


def _add(archive: ZipFile, entry: str, source: Path | bytes) -> FileInfo:
    info = ZipInfo(entry, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # Unix: the mode below counts
    info.external_attr = 0o100644 << 16
    if isinstance(source, bytes):
        archive.writestr(info, source)
        return FileInfo(len(source), hashlib.sha256(source).hexdigest())
    info.file_size = source.stat().st_size
    with source.open('rb') as file, archive.open(info, 'w') as stored:
        return _copy(file, stored)


def _copy(source: IO[bytes], target: IO[bytes]) -> FileInfo:
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        target.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return FileInfo(size, digest.hexdigest())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
