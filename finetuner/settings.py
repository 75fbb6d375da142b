"""Where things lie on this machine, and the credentials file. Every place can be moved by an environment variable."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

DEFAULT_PORT = 51000
DEFAULT_HOST = f'grpc://localhost:{DEFAULT_PORT}'


def home() -> Path:
    """The folder of all state (database, data sets, runs, artifacts): `FINETUNER_HOME`, or the user's data folder."""
    return Path(os.environ.get('FINETUNER_HOME') or platformdirs.user_data_path('finetuner')).expanduser().absolute()


def config_dir() -> Path:
    """The folder of the credentials file: `FINETUNER_CONFIG_DIR`, or the user's config folder."""
    path = os.environ.get('FINETUNER_CONFIG_DIR') or platformdirs.user_config_path('finetuner')
    return Path(path).expanduser().absolute()


def host() -> str:
    """The service that the client talks to: `FINETUNER_HOST`, the host of the last login, or `grpc://localhost:51000`."""
    return os.environ.get('FINETUNER_HOST') or _read_credentials().get('host') or DEFAULT_HOST


def normalize_host(host: str) -> str:
    """The one way to write a host: `grpc://name:port`, or `grpcs://name:port` for TLS.

    :param host: the same, or without the scheme, the port (51000) or both.
    :raises ValueError: it has another scheme or form.
    """
    url = urlsplit(host if '://' in host else f'grpc://{host}')
    if url.scheme not in ('grpc', 'grpcs') or not url.hostname or url.path.strip('/'):
        raise ValueError(f'the host {host!r} is not an address: write grpc://name:port, or grpcs://name:port for TLS')
    name = f'[{url.hostname}]' if ':' in url.hostname else url.hostname
    return f'{url.scheme}://{name}:{url.port or DEFAULT_PORT}'


def is_local(host: str) -> bool:
    """Whether a host such as `grpc://localhost:51000` is this machine."""
    name = urlsplit(host if '://' in host else f'grpc://{host}').hostname or ''
    return name in ('localhost', '::1') or name.startswith('127.')


def secret(name: str) -> str | None:
    """The environment variable `name`, or what is in the file that `<name>_FILE` names, as containers get secrets.

    :raises ValueError: that file cannot be read.
    """
    value, path = os.environ.get(name), os.environ.get(f'{name}_FILE')
    if value or not path:
        return value
    try:
        return Path(path).read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'{name}_FILE: {path} cannot be read: {error}') from error


def credentials_path() -> Path:
    return config_dir() / 'credentials.json'


def load_token(host: str = DEFAULT_HOST) -> str | None:
    """The token for `host` from `FINETUNER_TOKEN` (or the file that `FINETUNER_TOKEN_FILE` names), `JINA_AUTH_TOKEN` or
    the credentials file, in this order; None if there is none. The services of this machine share one token.

    :raises ValueError: the credentials file is not valid, or the other cannot be read.
    """
    token = secret('FINETUNER_TOKEN') or os.environ.get('JINA_AUTH_TOKEN')
    if token:
        return token
    credentials = _read_credentials()
    return credentials.get('token') if is_local(host) else credentials.get('tokens', {}).get(normalize_host(host))


def save_token(token: str, host: str = DEFAULT_HOST) -> Path:
    """Write the token for `host` into the credentials file, readable by this user alone, and return its path."""
    with _locked():
        return _save_token(token, host)


def keep_token(is_good: Callable[[str | None], bool], make: Callable[[], str]) -> str:
    """The token for this machine's services: the one that :func:`load_token` finds if it is good, else a new one.

    Of several processes that do this at the same time, all get the token that the first one made.
    """
    if is_good(token := load_token()):  # without the lock: the folder may be read-only
        return str(token)
    with _locked():
        if not is_good(token := load_token()):
            _save_token(token := make(), DEFAULT_HOST)
        return str(token)


def save_host(host: str) -> Path:
    """Make `host` the service that this user's clients talk to."""
    with _locked():
        return _write_credentials({**_read_credentials(), 'host': host})


@contextmanager
def _locked() -> Iterator[None]:
    """Keep other processes from changing the credentials."""
    config_dir().mkdir(parents=True, exist_ok=True)
    with (config_dir() / '.lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _save_token(token: str, host: str) -> Path:
    credentials = _read_credentials()
    if is_local(host):
        credentials['token'] = token
    else:
        credentials.setdefault('tokens', {})[normalize_host(host)] = token
    return _write_credentials(credentials)


def _read_credentials() -> dict[str, Any]:
    path = credentials_path()
    try:
        credentials = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f'{path} is not a credentials file: delete it and call finetuner.login(token=...)') from error
    if not isinstance(credentials, dict) or not isinstance(credentials.get('tokens', {}), dict):
        raise ValueError(f'{path} is not a credentials file: delete it and call finetuner.login(token=...)')
    return credentials


def _write_credentials(credentials: dict[str, Any]) -> Path:
    path = credentials_path()
    aside = path.with_name(f'{path.name}.{secrets.token_hex(8)}')
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, 'w') as file:
        json.dump(credentials, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    return path
