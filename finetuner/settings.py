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

PORTS = {'grpc': 51000, 'grpcs': 51000, 'http': 51001, 'https': 443}
"""The default port of each scheme."""
DEFAULT_HOST = 'grpc://localhost:51000'
TOKEN_VARIABLES = ('FINETUNER_TOKEN', 'JINA_AUTH_TOKEN')
HOW_TO_WRITE = 'write grpc://name:port or http://name:port, or with TLS grpcs:// or https://'


def home() -> Path:
    """The folder of all state (database, data sets, runs, artifacts): `FINETUNER_HOME`, or the user's data folder."""
    return Path(os.environ.get('FINETUNER_HOME') or platformdirs.user_data_path('finetuner')).expanduser().absolute()


def made_home() -> Path:
    """The :func:`home`, made for this user alone if it is not there. One that is there keeps its rights."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def config_dir() -> Path:
    """The folder of the credentials file: `FINETUNER_CONFIG_DIR`, or the user's config folder."""
    path = os.environ.get('FINETUNER_CONFIG_DIR') or platformdirs.user_config_path('finetuner')
    return Path(path).expanduser().absolute()


def host() -> str:
    """The service that the client talks to: `FINETUNER_HOST`, the host of the last login, or `grpc://localhost:51000`."""
    return os.environ.get('FINETUNER_HOST') or _read_credentials().get('host') or DEFAULT_HOST


def addresses(host: str) -> list[str]:
    """The addresses of a host, in the order in which they are tried, each as `scheme://name:port`.

    :param host: one address, or several with commas between them. The port defaults to 51000 for gRPC, 51001 for
        `http://` and 443 for `https://`. Without a scheme an address stands for two: gRPC, and else HTTP.
    :raises ValueError: one has another scheme or form.
    """
    found: list[str] = []
    for address in filter(None, map(str.strip, host.split(','))):
        schemes = [''] if '://' in address else ['grpc://', 'http://']
        found += [_normalize(f'{scheme}{address}', host) for scheme in schemes]
    if not found:
        raise ValueError(f'the host {host!r} is not an address: {HOW_TO_WRITE}')
    return list(dict.fromkeys(found))


def normalize_host(host: str) -> str:
    """The one way to write a host: the first of its :func:`addresses`.

    :raises ValueError: it has another scheme or form.
    """
    return addresses(host)[0]


def _normalize(address: str, host: str) -> str:
    wrong = ValueError(f'the host {host!r} is not an address: {HOW_TO_WRITE}')
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError:
        raise wrong from None
    path = url.path.rstrip('/')
    has_place = not path or url.scheme in ('http', 'https')  # a service may lie below a path of a web server
    if url.scheme not in PORTS or not url.hostname or not has_place or url.query or url.fragment or '@' in url.netloc:
        raise wrong
    name = f'[{url.hostname}]' if ':' in url.hostname else url.hostname
    return f'{url.scheme}://{name}:{port or PORTS[url.scheme]}{path}'


def is_local(host: str) -> bool:
    """Whether a host such as `grpc://localhost:51000` is this machine."""
    address = host.partition(',')[0].strip()
    name = urlsplit(address if '://' in address else f'grpc://{address}').hostname or ''
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


def ca_certificate() -> Path | None:
    """The certificates (PEM) that a service may prove itself by, `FINETUNER_CA_CERT`; None for those of the system.

    :raises ValueError: there is no such file.
    """
    value = os.environ.get('FINETUNER_CA_CERT')
    if not value:
        return None
    path = Path(value).expanduser()
    if not path.is_file():
        raise ValueError(f'FINETUNER_CA_CERT names no file: {path}. It takes the path of a PEM')
    return path


def credentials_path() -> Path:
    return config_dir() / 'credentials.json'


def load_token(host: str = DEFAULT_HOST) -> str | None:
    """The token for `host` from `FINETUNER_TOKEN` (or the file that `FINETUNER_TOKEN_FILE` names), `JINA_AUTH_TOKEN` or
    the credentials file, in this order; None if there is none. The services of this machine share one token.

    :raises ValueError: the credentials file is not valid, or the other cannot be read.
    """
    if token := next(filter(None, map(secret, TOKEN_VARIABLES)), None):
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


def forget_token(host: str = DEFAULT_HOST) -> bool:
    """Remove the token for `host` from the credentials file. Whether there was one."""
    with _locked():
        credentials = _read_credentials()
        kept = credentials if is_local(host) else credentials.get('tokens', {})
        removed = kept.pop('token' if is_local(host) else normalize_host(host), None)
        if removed is not None:
            _write_credentials(credentials)
        return removed is not None


def save_host(host: str) -> Path:
    """Make `host` the service that this user's clients talk to."""
    with _locked():
        return _write_credentials({**_read_credentials(), 'host': host})


@contextmanager
def _locked() -> Iterator[None]:
    """Keep other processes from changing the credentials."""
    config_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
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
