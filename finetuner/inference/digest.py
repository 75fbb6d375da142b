"""What tells one model from every other: a digest of its files, and of what runs them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from finetuner.artifact import Artifact
from finetuner.inference.description import has_description, read_description
from finetuner.inference.engine import InferenceEngine
from finetuner.inference.loading import find_source

_CLIP = ('transformers-clip', 'open_clip')


def digest_model(engine: InferenceEngine, artifact: Artifact | str | Path, select_model: str | None = None) -> str:
    """sha256 of all that an embedding depends on beside its content: the files of the model, or the name of a
    pretrained one, which of its encoders it is, the engine and its precision.

    :param engine: what was loaded from `artifact`, as `load_engine` takes it.
    """
    source = find_source(artifact, select_model)
    whole = hashlib.sha256(f'{type(engine).__name__} {engine.precision} {select_model}\n'.encode())
    if isinstance(source, str):
        # what a name means may change, but not for a process that has loaded it
        whole.update(f'{source}\n'.encode())
        return whole.hexdigest()
    for folder in _folders(source):
        for path in sorted(path for path in folder.rglob('*') if path.is_file()):
            with path.open('rb') as file:
                digest = hashlib.file_digest(file, 'sha256').hexdigest()
            whole.update(f'{digest} {path.relative_to(folder).as_posix()}\n'.encode())
    return whole.hexdigest()


def _folders(directory: Path) -> list[Path]:
    """That of a model, and for an encoder of CLIP the one beside it with the weights of both."""
    if has_description(directory) and read_description(directory)['library'] in _CLIP:
        return [directory, directory.parent / 'clip']
    return [directory]
