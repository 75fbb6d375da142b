"""Finding the artifact that an executor is to serve."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from logging import Logger
from pathlib import Path
from typing import Protocol

from executors.opening import open_registry
from finetuner import settings
from finetuner.client.session import current_session
from finetuner.client.transport import NobodyThere
from finetuner.excepts import ArtifactError, ArtifactNotFoundError, AuthenticationError, RegistryError
from finetuner.inference import resolve_artifact
from finetuner.inference.remote import fetch_id, without_secrets
from registry.names import ID

ALIAS = re.compile(r'[^@/]+@[^@/]+')
RUN = re.compile(r'[^@/]+/[^@/]+')


@dataclass(frozen=True)
class Found:
    """What is to be served.

    :param source: where it lies on this machine, or the name of a pretrained model.
    :param id: the artifact's; for what is in no registry, what it was asked for by.
    :param refusal: why it is taken for a model of a hub and not for a run, whose name it may be as well.
    """

    source: str | Path
    id: str
    refusal: str | None = None


class Store(Protocol):
    """Artifacts that have ids."""

    def id_of(self, reference: str) -> str:
        """The id of the artifact that a reference means now: an id, `experiment/run` or `name@stage`."""

    def file_of(self, artifact_id: str) -> Path:
        """Its zip file on this machine."""

    def close(self) -> None: ...


class LocalStore:
    """The artifacts of the registry that this machine reaches."""

    def __init__(self, token: str | None, logger: Logger):
        self._registry = open_registry(logger)  # which makes an account and its token, if it is the first to do so
        self._token = token or settings.load_token()

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

    def __init__(self, token: str | None, logger: Logger):
        self._token = token

    def id_of(self, reference: str) -> str:
        session = current_session(self._token)
        return str(session.request('/artifact', artifact_id=reference, length=1).tags['id'])

    def file_of(self, artifact_id: str) -> Path:
        return fetch_id(artifact_id, self._token)

    def close(self) -> None:
        pass


def find_artifact(artifact: str, token: str | None, logger: Logger) -> tuple[Found | None, Store | None]:
    """What an executor is to serve, fetched to this machine if need be, and the store where an alias is looked up
    again; None for what is no alias, as it means the same for ever. An alias that names nothing yet gives only that.

    :param artifact: a path, a URL, the name of a pretrained model, or a reference to an artifact: its id,
        `experiment/run`, or an alias `name@stage`. Ids are those of the registry on this machine, or else of the
        service at `FINETUNER_HOST`.
    :param token: for references: who asks; default the one of the environment or of the credentials file.
    :param logger: is told of a database that is waited for.
    :raises AuthenticationError: a token is needed and is missing or unknown.
    :raises ArtifactError: there is no such artifact.
    """
    is_alias = ALIAS.fullmatch(artifact) is not None
    may_be_run = RUN.fullmatch(artifact) is not None and (_has_registry() or 'FINETUNER_HOST' in os.environ)
    if Path(artifact).exists() or not (is_alias or may_be_run or ID.fullmatch(artifact)):
        return Found(resolve_artifact(artifact), without_secrets(artifact)), None
    try:
        found, store = _fetch(artifact, token, is_alias, logger)
    except (ArtifactError, AuthenticationError, RegistryError) as error:
        if may_be_run:  # or the id of a model on a hub
            return Found(resolve_artifact(artifact), artifact, str(error)), None
        raise
    if is_alias:
        return found, store
    store.close()
    return found, None


def _fetch(reference: str, token: str | None, may_wait: bool, logger: Logger) -> tuple[Found | None, Store]:
    """From the first store that has it; if none has it and it may be waited for, the last store alone."""
    kinds: list[Callable[[str | None, Logger], Store]] = [LocalStore]
    if os.environ.get('FINETUNER_HOST'):
        kinds = [LocalStore, RemoteStore] if _has_registry() else [RemoteStore]
    for kind in kinds:
        store = kind(token, logger)
        try:
            artifact_id = store.id_of(reference)
            return Found(store.file_of(artifact_id), artifact_id), store
        except (ArtifactNotFoundError, NobodyThere) as error:
            # the service that cannot be reached may be the very one that this executor is a part of, and will be
            is_to_come = len(kinds) > 1 or not isinstance(error, NobodyThere)
            if kind is kinds[-1] and may_wait and is_to_come:
                logger.warning(str(error))  # with the aliases that there are: it may be misspelt
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
