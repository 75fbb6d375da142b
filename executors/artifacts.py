"""Finding the artifact that an executor is to serve."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetuner import settings
from finetuner.client.artifacts import download_artifact
from finetuner.client.session import current_session
from finetuner.excepts import ArtifactError, ArtifactNotFoundError, AuthenticationError, RegistryError
from finetuner.inference import resolve_artifact
from registry import Registry
from registry.names import ID

ALIAS = re.compile(r'[^@/]+@[^@/]+')
RUN = re.compile(r'[^@/]+/[^@/]+')


@dataclass(frozen=True)
class Found:
    """What is to be served.

    :param source: where it lies on this machine, or the name of a pretrained model.
    :param id: the artifact's; for what is in no registry, what it was asked for by.
    """

    source: str | Path
    id: str


class Store(Protocol):
    """Artifacts that have ids."""

    def id_of(self, reference: str) -> str:
        """The id of the artifact that a reference means now: an id, `experiment/run` or `name@stage`."""

    def file_of(self, artifact_id: str) -> Path:
        """Its zip file on this machine."""

    def close(self) -> None: ...


class LocalStore:
    """The artifacts of the registry that this machine reaches."""

    def __init__(self, token: str | None):
        self._token = token or settings.load_token()
        self._registry = Registry.open()

    def id_of(self, reference: str) -> str:
        return self._registry.find_artifact(self._account(), reference).id

    def file_of(self, artifact_id: str) -> Path:
        return self._registry.artifact_file(self._registry.find_artifact(self._account(), artifact_id))

    def close(self) -> None:
        self._registry.close()

    def _account(self) -> str:
        return self._registry.authenticate(self._token).id


class RemoteStore:
    """The artifacts of the service at `FINETUNER_HOST`."""

    def __init__(self, token: str | None):
        self._token = token

    def id_of(self, reference: str) -> str:
        session = current_session(self._token)
        return str(session.request('/artifact', artifact_id=reference, length=1).tags['id'])

    def file_of(self, artifact_id: str) -> Path:
        kept = settings.home() / 'cache' / 'downloads'
        return download_artifact(artifact_id, kept, self._token)

    def close(self) -> None:
        pass


def find_artifact(artifact: str, token: str | None) -> tuple[Found | None, Store | None]:
    """What an executor is to serve, fetched to this machine if need be, and the store where an alias is looked up
    again; None for what is no alias, as it means the same for ever. An alias that names nothing yet gives only that.

    :param artifact: a path, a URL, the name of a pretrained model, or a reference to an artifact: its id,
        `experiment/run`, or an alias `name@stage`. Ids are those of the registry on this machine, or else of the
        service at `FINETUNER_HOST`.
    :param token: for references: who asks; default the one of the environment or of the credentials file.
    :raises AuthenticationError: a token is needed and is missing or unknown.
    :raises ArtifactError: there is no such artifact.
    """
    is_alias = ALIAS.fullmatch(artifact) is not None
    may_be_run = RUN.fullmatch(artifact) is not None and (_has_registry() or 'FINETUNER_HOST' in os.environ)
    if Path(artifact).exists() or not (is_alias or may_be_run or ID.fullmatch(artifact)):
        return Found(resolve_artifact(artifact), artifact), None
    try:
        found, store = _fetch(artifact, token, is_alias)
    except (ArtifactError, AuthenticationError, RegistryError):
        if may_be_run:  # or the id of a model on a hub
            return Found(resolve_artifact(artifact), artifact), None
        raise
    if is_alias:
        return found, store
    store.close()
    return found, None


def _fetch(reference: str, token: str | None, may_wait: bool) -> tuple[Found | None, Store]:
    """From the first store that has it; if none has it and it may be waited for, the last store alone."""
    kinds: list[Callable[[str | None], Store]] = [LocalStore]
    if os.environ.get('FINETUNER_HOST'):
        kinds = [LocalStore, RemoteStore] if _has_registry() else [RemoteStore]
    for kind in kinds:
        store = kind(token)
        try:
            artifact_id = store.id_of(reference)
            return Found(store.file_of(artifact_id), artifact_id), store
        except ArtifactNotFoundError:
            if kind is kinds[-1] and may_wait:
                return None, store
            store.close()
            if kind is kinds[-1]:
                raise
        except (ArtifactError, AuthenticationError, RegistryError):
            store.close()
            if kind is kinds[-1]:
                raise
        except BaseException:
            store.close()
            raise
    raise AssertionError('unreachable')


def _has_registry() -> bool:
    return bool(settings.secret('FINETUNER_DATABASE_URL')) or (settings.home() / 'registry.db').exists()
