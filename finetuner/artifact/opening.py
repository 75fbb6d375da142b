"""Opening artifacts, zipped or unpacked, with every file checked against its digest.

A zip is unpacked once, into a folder of the cache that is named by the zip's sha256. It is unpacked aside and then
renamed, so that concurrent openings never see half of it. What lies in the cache may be changed later by anybody who
can write there: each process checks all digests the first time it opens an artifact from the cache, and unpacks it
again if they fail. A process that opens it a second time pays for hashing the zip only.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuner import settings
from finetuner.artifact.archive import MAX_BYTES, check_file, check_listing, unpack
from finetuner.artifact.cache import make_room, mark_used
from finetuner.artifact.manifest import (
    CONFIG,
    MAX_YAML,
    METADATA,
    METRICS,
    FileInfo,
    Metadata,
    ModelInfo,
    check_path,
    load_yaml,
)
from finetuner.excepts import ArtifactError, SelectModelRequired

_lock = threading.Lock()
_checked: set[Path] = set()  # folders of the cache that this process has checked


@dataclass(frozen=True)
class Artifact:
    """An opened artifact, all of its files checked.

    :param directory: where it lies unpacked.
    :param name: the run's name.
    :param metadata: `metadata.yml`.
    :param config: `config.yml`.
    :param metrics: `metrics.yml`.
    :param models: what each model does, by name.
    """

    directory: Path
    name: str
    metadata: dict[str, Any]
    config: dict[str, Any]
    metrics: dict[str, Any]
    models: dict[str, ModelInfo]

    def model_directory(self, name: str) -> Path:
        return self.directory / 'models' / name

    def select(self, select_model: str | None = None) -> str:
        """The name of the model that is meant; artifacts of one model ignore `select_model`.

        :raises SelectModelRequired: there are several and `select_model` is None.
        :raises ValueError: there are several and none has this name.
        """
        if len(self.models) == 1:
            return next(iter(self.models))
        names = ', '.join(sorted(self.models))
        if select_model is None:
            raise SelectModelRequired(
                f'the artifact {self.name!r} has several models: set select_model to one of {names}'
            )
        if select_model not in self.models:
            raise ValueError(f'the artifact {self.name!r} has no model {select_model!r}: it has {names}')
        return select_model


def open_artifact(path: str | Path, cache: str | Path | None = None, max_bytes: int = MAX_BYTES) -> Artifact:
    """Open an artifact.

    :param path: the zip, its unpacked folder, or the folder that it was unpacked into.
    :param cache: where zips are unpacked; default `<home>/cache/artifacts`.
    :param max_bytes: the most that a zip may unpack to.
    :raises ArtifactError: it is not there, damaged, unsafe, altered or of an unknown format; the message says which.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            root = _find_root(path)
            _check_directory(root)
        elif path.is_file():
            root = _unpack_once(path, Path(cache or settings.made_home() / 'cache' / 'artifacts'), max_bytes)
        else:
            raise ArtifactError('there is no such file or directory')
        return _read(root)
    except ArtifactError as error:
        raise ArtifactError(f'cannot open the artifact {path}: {error}') from error


def is_artifact_directory(path: Path) -> bool:
    """Whether a directory is an unpacked artifact, or holds the folder of one."""
    return (path / METADATA).is_file() or len(list(path.glob(f'*/{METADATA}'))) == 1


def hash_file(path: Path) -> FileInfo:
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256')
    return FileInfo(path.stat().st_size, digest.hexdigest())


def _find_root(path: Path) -> Path:
    if (path / METADATA).is_file():
        return path
    inner = [file.parent for file in path.glob(f'*/{METADATA}')]
    if len(inner) != 1:
        raise ArtifactError(f'it has no {METADATA}' if not inner else f'{len(inner)} folders in it are artifacts')
    return inner[0]


def _unpack_once(path: Path, cache: Path, max_bytes: int) -> Path:
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
        file.seek(0)
        root = cache / digest
        mark_used(root)
        with _lock:
            if root in _checked and root.is_dir():
                return root
            if root.is_dir():
                try:
                    _check_directory(root)
                except ArtifactError:
                    _remove(root)
            if not root.is_dir():
                cache.mkdir(parents=True, exist_ok=True)
                make_room(cache)
                aside = Path(tempfile.mkdtemp(dir=cache, prefix='.unpacking-'))
                try:
                    unpack(file, aside, max_bytes)
                    _put(aside, root)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
            _checked.add(root)
    return root


def _put(aside: Path, root: Path) -> None:
    try:
        aside.rename(root)
    except OSError:
        # another process was faster; what it put there is as good if it passes the same check
        if not root.is_dir():
            raise
        _check_directory(root)


def _remove(root: Path) -> None:
    aside = Path(tempfile.mkdtemp(dir=root.parent, prefix='.damaged-'))
    with contextlib.suppress(FileNotFoundError):  # another process removed it
        root.rename(aside / root.name)
    shutil.rmtree(aside)


def _check_directory(root: Path) -> None:
    found = {check_path(path.relative_to(root).as_posix()): path for path in _files(root)}
    if METADATA not in found:
        raise ArtifactError(f'it has no {METADATA}')
    metadata = Metadata.from_dict(_load(root, METADATA))
    del found[METADATA]
    check_listing(set(found), metadata)
    for name, path in found.items():
        check_file(name, hash_file(path), metadata.files[name])


def _files(root: Path) -> Iterator[Path]:
    for path in root.iterdir():
        if path.is_symlink():
            raise ArtifactError(f'it has a symbolic link, which is unsafe: {path.name!r}')
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path
        else:
            raise ArtifactError(f'it has an entry that is neither a file nor a directory: {path.name!r}')


def _load(root: Path, file: str) -> dict[str, Any]:
    with (root / file).open('rb') as stream:
        return load_yaml(stream.read(MAX_YAML + 1), file)


def _read(root: Path) -> Artifact:
    content = _load(root, METADATA)
    metadata = Metadata.from_dict(content)
    return Artifact(root, metadata.name, content, _load(root, CONFIG), _load(root, METRICS), metadata.models)
