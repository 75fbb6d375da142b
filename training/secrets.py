"""What a run needs and nobody may read: kept beside the run until it has finished, never with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import SecretStr

from training.callbacks.options import WandBConfig
from training.config import FitConfig
from training.run_folder import SECRETS


def keep_secrets(config: FitConfig, directory: Path) -> None:
    """Write the tokens of the callbacks to a file in the folder of the run that its owner alone can read."""
    tokens = {
        number: callback.options.token.get_secret_value()
        for number, callback in enumerate(config.callbacks or [])
        if isinstance(callback, WandBConfig) and callback.options.token
    }
    if not tokens:
        return
    aside = directory / f'.{SECRETS}.{os.getpid()}'
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 'w') as file:
        json.dump(tokens, file)
    os.replace(aside, directory / SECRETS)


def restore_secrets(config: FitConfig, directory: Path) -> None:
    """Put the tokens back into a config that was stored without them."""
    path = directory / SECRETS
    if not path.is_file():
        return
    tokens = json.loads(path.read_text())
    for number, callback in enumerate(config.callbacks or []):
        if isinstance(callback, WandBConfig) and str(number) in tokens:
            callback.options.token = SecretStr(tokens[str(number)])
