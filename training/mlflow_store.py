"""Where MLflow keeps what is told to it: a server by its URL, or else a database in the home of this program."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from finetuner import settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE = 'MLFLOW_TRACKING_URI'


def open_client(uri: str | None = None) -> MlflowClient:
    """
    :param uri: default `MLFLOW_TRACKING_URI`, or else a database in `FINETUNER_HOME`.
    """
    os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
    os.environ.setdefault('MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR', 'false')  # the log of a run is no terminal
    from mlflow import MlflowClient

    logging.getLogger('mlflow').setLevel(logging.WARNING)
    # it logs with a traceback, which may name hosts and users, what it raises as well
    logging.getLogger('mlflow.store.db.utils').setLevel(logging.CRITICAL)
    return MlflowClient(uri or os.environ.get(VARIABLE) or f'sqlite:///{settings.made_home() / "mlflow.db"}')


def local_artifacts() -> Path | None:
    """The folder for files where there is no server that has one; None where there is."""
    return None if os.environ.get(VARIABLE) else settings.made_home() / 'mlflow'
