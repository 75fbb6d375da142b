"""Finding the artifact that an executor is to serve."""

from __future__ import annotations

import os
from pathlib import Path

from finetuner import settings
from finetuner.client.artifacts import download_artifact
from finetuner.excepts import ArtifactError, AuthenticationError
from finetuner.inference import resolve_artifact
from registry import Registry
from registry.names import ID


def find_artifact(artifact: str, token: str | None) -> str | Path:
    """Where an artifact lies on this machine, after fetching it if need be, or the name of a pretrained model.

    :param artifact: a path, a URL, a name, or an id: of the registry on this machine, or else of the service at
        `FINETUNER_HOST`.
    :param token: for ids: who asks; default the one of the environment or of the credentials file.
    :raises AuthenticationError: a token is needed and is missing or unknown.
    :raises ArtifactError: there is no such artifact.
    """
    if ID.fullmatch(artifact) and not Path(artifact).exists():
        return _fetch(artifact, token)
    return resolve_artifact(artifact)


def _fetch(artifact_id: str, token: str | None) -> Path:
    remote = os.environ.get('FINETUNER_HOST')
    if remote and not _has_registry():
        return _download(artifact_id, token)
    try:
        return _fetch_local(artifact_id, token or settings.load_token())
    except (ArtifactError, AuthenticationError):
        if not remote:
            raise
        return _download(artifact_id, token)


def _has_registry() -> bool:
    return bool(settings.secret('FINETUNER_DATABASE_URL')) or (settings.home() / 'registry.db').exists()


def _fetch_local(artifact_id: str, token: str | None) -> Path:
    with Registry.open() as registry:
        account = registry.authenticate(token)
        return registry.artifact_file(registry.get_artifact(account.id, artifact_id))


def _download(artifact_id: str, token: str | None) -> Path:
    return download_artifact(artifact_id, settings.home() / 'cache' / 'downloads', token)
