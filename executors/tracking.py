"""Which trackers the runs of clients may report to."""

from __future__ import annotations

import os
from urllib.parse import unquote

from finetuner.excepts import ParameterError
from finetuner.inference.remote import without_secrets
from training.callbacks.options import MLFlowConfig
from training.config import FitConfig

VARIABLE = 'FINETUNER_MLFLOW_URIS'


def check_trackers(config: FitConfig) -> None:
    """Refuse an MLflow that the operator does not allow: its URI may name any file or host that the service reaches.

    :raises ParameterError: a callback has a `tracking_uri` that is neither in `FINETUNER_MLFLOW_URIS` nor below one.
    """
    allowed = [uri.strip() for uri in os.environ.get(VARIABLE, '').split(',') if uri.strip()]
    for callback in config.callbacks or []:
        if not isinstance(callback, MLFlowConfig) or callback.options.tracking_uri is None:
            continue
        uri = callback.options.tracking_uri
        if not any(_is_below(uri, prefix) for prefix in allowed):
            raise ParameterError(
                f'MLFlowLogger.tracking_uri {without_secrets(uri)!r} is not one that this service reports to: leave it '
                f'out, or have its operator allow it with {VARIABLE}'
            )


def _is_below(uri: str, prefix: str) -> bool:
    """Whether it is the prefix, or continues it behind a '/': `https://host` does not allow `https://host.other`."""
    folder = prefix.rstrip('/') + '/'
    if uri.rstrip('/') + '/' == folder:
        return True
    rest = unquote(uri.removeprefix(folder))
    return uri.startswith(folder) and '..' not in rest and not set('?#\\') & set(rest)
