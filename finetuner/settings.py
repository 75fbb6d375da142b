"""Where things lie on this machine, and the credentials file. Every place can be moved by an environment variable."""

from __future__ import annotations

import json
import os
from pathlib import Path

import platformdirs

DEFAULT_HOST = 'grpc://localhost:51000'


def home() -> Path:
    """The folder of all state (database, data sets, runs, artifacts): `FINETUNER_HOME`, or the user's data folder."""
    return Path(os.environ.get('FINETUNER_HOME') or platformdirs.user_data_path('finetuner')).expanduser().absolute()


def config_dir() -> Path:
    """The folder of the credentials file: `FINETUNER_CONFIG_DIR`, or the user's config folder."""
    path = os.environ.get('FINETUNER_CONFIG_DIR') or platformdirs.user_config_path('finetuner')
    return Path(path).expanduser().absolute()


def host() -> str:
    """The service that the client talks to: `FINETUNER_HOST`, default `grpc://localhost:51000`."""
    return os.environ.get('FINETUNER_HOST') or DEFAULT_HOST


def credentials_path() -> Path:
    return config_dir() / 'credentials.json'


def load_token() -> str | None:
    """The token of `FINETUNER_TOKEN`, `JINA_AUTH_TOKEN` or the credentials file, in this order; None if there is none.

    :raises ValueError: the credentials file is not valid.
    """
    token = os.environ.get('FINETUNER_TOKEN') or os.environ.get('JINA_AUTH_TOKEN')
    if token:
        return token
    path = credentials_path()
    if not path.exists():
        return None
    try:
        token = json.loads(path.read_text())['token']
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is not a credentials file: delete it and call finetuner.login(token=...)') from error
    return str(token)


def save_token(token: str) -> Path:
    """Write the credentials file, readable by this user alone, and return its path."""
    path = credentials_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'{path.name}.{os.getpid()}')
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, 'w') as file:
        json.dump({'token': token}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    return path
