"""Downloading artifacts: piece by piece, checked, and complete or not there at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from finetuner.excepts import ArtifactError

if TYPE_CHECKING:
    from finetuner.client.session import Session

PIECE = 4 << 20  # bytes


def download_artifact(artifact_id: str, directory: str | Path, token: str | None = None) -> Path:
    """Download an artifact of the service as `<directory>/<artifact_id>.zip`.

    :param token: who asks; default the session's.
    :raises ArtifactError: there is no such artifact, or what arrived is not what the service holds.
    """
    from finetuner.client.session import current_session

    return download(current_session(token), artifact_id, directory, f'{artifact_id}.zip')


def download(session: Session, artifact_id: str, directory: str | Path, file_name: str) -> Path:
    """Download an artifact as `<directory>/<file_name>`; the folder is made."""
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    from finetuner.console import make_progress

    folder = Path(directory).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file_name
    aside = folder / f'.{file_name}.{os.getpid()}.part'
    digest = hashlib.sha256()
    received = 0
    try:
        with (
            aside.open('wb') as file,
            make_progress(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as progress,
        ):
            task = progress.add_task(file_name, total=None)
            while True:
                answer = session.request('/artifact', artifact_id=artifact_id, offset=received, length=PIECE)
                piece, size = answer.blob or b'', int(answer.tags['size'])
                file.write(piece)
                digest.update(piece)
                received += len(piece)
                progress.update(task, completed=received, total=size)
                if received >= size:
                    break
                if not piece:
                    raise ArtifactError(f'artifact {artifact_id} broke off after {received} of {size} bytes: try again')
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != answer.tags['sha256']:
            raise ArtifactError(f'artifact {artifact_id} arrived damaged (its sha256 differs): try again')
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    return target
