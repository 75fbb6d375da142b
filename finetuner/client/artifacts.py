"""Downloading artifacts: piece by piece, checked, and complete or not there at all."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

from finetuner.client.session import Session, current_session
from finetuner.excepts import ArtifactError
from finetuner.results import ArtifactInfo, read_result
from finetuner.run import Run

PIECE = 4 << 20  # bytes
ALIAS = re.compile(r'[^/@\s~.][^/@\s]*@[^/@\s]+')
RUN = re.compile(r'(?P<experiment>[^/@\s~.][^/@\s]*)/(?P<run>[^/@\s]+)(?<!\.zip)')


def list_artifacts(page: int = 1, size: int = 50) -> list[ArtifactInfo]:
    """The artifacts of our account, the newest first.

    :param page: from 1.
    :param size: artifacts on a page, at most 100.
    """
    found = current_session().request('/artifacts', page=page, size=size).tags['items']
    return [read_result(ArtifactInfo, record) for record in found]


def download_artifact(artifact: str, directory: str | Path, token: str | None = None) -> Path:
    """Download an artifact of the service as `<directory>/<its id>.zip`.

    :param artifact: its id, 'experiment/run', or an alias such as 'support@production'.
    :param token: who asks; default the session's.
    :raises ArtifactError: there is no such artifact, or what arrived is not what the service holds.
    :raises RegistryError: there is no such run or alias.
    :raises RunInProgressError: the run is not finished.
    :raises RunFailedError: the run failed or was cancelled.
    """
    session = current_session(token)
    artifact_id = find_artifact_id(session, artifact)
    return download(session, artifact_id, directory, f'{artifact_id}.zip')


def find_artifact_id(session: Session, artifact: str) -> str:
    """The id of an artifact that is named by its run or an alias; an id is returned as it is.

    What a name means may change at any time, what an id means never does: whoever reads an artifact in pieces, or
    keeps it, goes by the id.
    """
    if ALIAS.fullmatch(artifact):
        return str(session.request('/alias', alias=artifact).tags['artifact_id'])
    if found := RUN.fullmatch(artifact):
        status = session.request('/status', experiment_name=found['experiment'], run_name=found['run'])
        return Run(session, status.tags).artifact_id
    return artifact


def download(session: Session, artifact_id: str, directory: str | Path, file_name: str) -> Path:
    """Download an artifact as `<directory>/<file_name>`; the folder is made."""
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    from finetuner.console import make_progress

    folder = Path(directory).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file_name
    aside = folder / f'.{file_name}.{secrets.token_hex(4)}.part'  # another may be on its way to the same name
    received = 0
    try:
        with (
            aside.open('x+b') as file,
            make_progress(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as progress,
        ):
            task = progress.add_task(file_name, total=None)
            while True:
                answer = session.request('/artifact', artifact_id=artifact_id, offset=received, length=PIECE)
                piece, size = answer.blob or b'', int(answer.tags['size'])
                file.write(piece)
                received += len(piece)
                progress.update(task, completed=received, total=size)
                if received >= size:
                    break
                if not piece:
                    raise ArtifactError(f'artifact {artifact_id} broke off after {received} of {size} bytes: try again')
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, 'sha256').hexdigest()
        if digest != answer.tags['sha256']:
            raise ArtifactError(f'artifact {artifact_id} arrived damaged (its sha256 differs): try again')
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    return target
