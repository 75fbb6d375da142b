"""Bringing artifacts here: from the service by id, or from a URL."""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from finetuner import settings
from finetuner.artifact.cache import make_room, mark_used
from finetuner.excepts import ArtifactError, AuthenticationError, FinetunerServerError, RegistryError
from finetuner.models import find_backbone

MAX_BYTES = 16 << 30

_ID = re.compile(r'[0-9a-f]{24}')
_HUB_PAGE = re.compile(r'https://huggingface\.co/([\w.-]+/[\w.-]+)/?', re.ASCII)
_TIMEOUT = 60  # seconds without a byte
_CHUNK = 1 << 20


def resolve_artifact(artifact: str | Path, token: str | None = None) -> str | Path:
    """Where an artifact lies on this machine, after fetching it if need be.

    :param artifact: a path; an id of 24 hexadecimal digits, fetched from the service and kept, since what an id means
        never changes; or a URL: `http(s)://`, `file://`, or any other that an installed fsspec reads. The page of a
        model on huggingface.co means the model, by its hub id. Anything else is returned as it is, as it may be the
        name of a pretrained model.
    :param token: for ids: who asks the service.
    :raises ArtifactError: it could not be fetched.
    """
    if isinstance(artifact, str) and (page := _HUB_PAGE.fullmatch(artifact)):
        return page[1]
    if isinstance(artifact, str) and '://' in artifact:
        return fetch_url(artifact)
    if isinstance(artifact, Path) or Path(artifact).expanduser().exists():
        return Path(artifact).expanduser()
    return fetch_id(artifact, token) if is_id(artifact) else artifact


def is_id(name: str) -> bool:
    """Whether this is how ids of artifacts look: 24 hexadecimal digits."""
    return _ID.fullmatch(name) is not None


def resolve_named(artifact: str | Path, token: str | None = None) -> str | Path:
    """As :func:`resolve_artifact`, and artifacts that the service knows by a name: an alias, as in
    'support@production', or 'experiment/run'. A path that exists is a path, whatever else it could be;
    'organization/model' is a hub id if it is a known one, or if the service has no such run.

    :raises RegistryError: there is no such alias.
    :raises RunInProgressError: the run is not finished.
    :raises RunFailedError: the run failed or was cancelled.
    """
    from finetuner.client.artifacts import ALIAS, RUN, find_artifact_id
    from finetuner.client.session import current_session

    if not isinstance(artifact, str) or Path(artifact).expanduser().exists():
        return resolve_artifact(artifact, token)
    if ALIAS.fullmatch(artifact):
        artifact = find_artifact_id(current_session(token), artifact)
    elif RUN.fullmatch(artifact) and not _is_hub_id(artifact):
        try:
            artifact = find_artifact_id(current_session(token), artifact)
        except RegistryError:
            pass  # no run of ours: it is a hub id
        except (AuthenticationError, FinetunerServerError) as error:
            if token or settings.load_token(settings.host()):
                warnings.warn(f'{error}. So {artifact!r} is taken for a model of the hub', stacklevel=3)
    return resolve_artifact(artifact, token)


def _is_hub_id(name: str) -> bool:
    return find_backbone(name) is not None or name.startswith('timm/')


def fetch_url(url: str, max_bytes: int = MAX_BYTES) -> Path:
    """Download a file to `<home>/cache/downloads/<sha256 of its content>.zip`.

    :raises ArtifactError: it cannot be read, or is larger than `max_bytes`.
    """
    shown = without_secrets(url)
    folder = _downloads()
    descriptor, name = tempfile.mkstemp(dir=folder, prefix='.download-')
    aside = Path(name)
    try:
        with os.fdopen(descriptor, 'wb') as file:
            try:
                with _open(url) as source:
                    digest = _copy(source, file, shown, max_bytes)
            except ArtifactError:
                raise
            except Exception as error:  # those of fsspec's backends have no common base
                # from None: the error may show the secrets of the URL
                reason = _reason(error, has_secrets=shown != url)
                raise ArtifactError(f'cannot download the artifact {shown}: {reason}') from None
            file.flush()
            os.fsync(file.fileno())
        target = folder / f'{digest}.zip'
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def fetch_id(artifact_id: str, token: str | None) -> Path:
    """Download an artifact of the service to `<home>/cache/downloads/<its id>.zip`, unless it is there."""
    kept = _downloads() / f'{artifact_id}.zip'
    if kept.is_file():
        mark_used(kept)
        return kept
    from finetuner.client import download_artifact

    # in a folder of its own, so that concurrent downloads do not meet
    folder = Path(tempfile.mkdtemp(dir=kept.parent, prefix='.download-'))
    try:
        os.replace(download_artifact(artifact_id, folder, token), kept)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return kept


def _downloads() -> Path:
    folder = settings.made_home() / 'cache' / 'downloads'
    folder.mkdir(parents=True, exist_ok=True)
    make_room(folder)
    return folder


def _open(url: str) -> AbstractContextManager[Any]:
    if url.partition(':')[0].lower() in ('http', 'https', 'file'):
        return urllib.request.urlopen(url, timeout=_TIMEOUT)
    if importlib.util.find_spec('fsspec') is None:
        raise ArtifactError(f'cannot download {without_secrets(url)}: URLs of this kind need fsspec, which is missing')
    import fsspec

    return fsspec.open(url, 'rb')


def _copy(source: IO[bytes], target: IO[bytes], shown: str, max_bytes: int) -> str:
    """Copy at most `max_bytes`, and return the sha256."""
    digest, size = hashlib.sha256(), 0
    headers = getattr(source, 'headers', None)
    expected = headers.get('Content-Length') if headers is not None else None
    expected = int(expected) if expected is not None else None
    too_large = ArtifactError(f'the artifact {shown} is larger than the limit of {max_bytes} bytes')
    if expected is not None and expected > max_bytes:
        raise too_large
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > max_bytes:
            raise too_large
        digest.update(chunk)
        target.write(chunk)
    if expected is not None and size != expected:
        raise ArtifactError(f'the download of {shown} broke off after {size} of {expected} bytes: try again')
    return digest.hexdigest()


def without_secrets(url: str) -> str:
    """A URL without user, password, query and fragment, which may hold keys; anything else as it is."""
    if '://' not in url:
        return url
    return re.split('[?#]', re.sub('://[^/?#]*@', '://', url))[0]


def _reason(error: BaseException, has_secrets: bool) -> str:
    """What went wrong, without parts of the URL that was asked for, or that it led to."""
    if isinstance(error, urllib.error.HTTPError):
        return f'HTTP status {error.code} ({http.client.responses.get(error.code, "unknown")})'
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return _reason(error.reason, has_secrets)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if has_secrets or isinstance(error, http.client.HTTPException):
        return type(error).__name__
    return str(error) or type(error).__name__
