"""MLFlowLogger: figures go to MLflow."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

from finetuner import settings
from training.callbacks.logger import Logger
from training.state import TrainingState

MAX_VALUE = 500  # what every kind of store takes


class MLFlowLogger(Logger):
    """Makes a run in an experiment, with the config as its parameters.

    :param experiment: is made if there is none of this name.
    :param tracking_uri: default `MLFLOW_TRACKING_URI`, or else a database in `FINETUNER_HOME`.
    """

    def __init__(self, experiment: str, tracking_uri: str | None = None):
        super().__init__()
        self.experiment, self.tracking_uri = experiment, tracking_uri

    def open(self, state: TrainingState, config: dict[str, Any]) -> None:
        os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger('mlflow').setLevel(logging.WARNING)
        self._client = MlflowClient(self.tracking_uri or os.environ.get('MLFLOW_TRACKING_URI') or _local_store())
        if self.run_id is not None:
            self._client.update_run(self.run_id, 'RUNNING')
            return
        found = self._client.get_experiment_by_name(self.experiment)
        number = found.experiment_id if found else self._client.create_experiment(self.experiment)
        run_id = self._client.create_run(number, run_name=config.get('run_name')).info.run_id
        given = {name: value for name, value in config.items() if value is not None}
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
        self._client.log_batch(run_id, params=[Param(name, text[:MAX_VALUE]) for name, text in texts.items()])
        self.run_id = run_id

    def send(self, figures: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(str(self.run_id), metrics=metrics)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(str(self.run_id), 'FAILED' if failed else 'FINISHED')


def _local_store() -> str:
    return f'sqlite:///{settings.made_home() / "mlflow.db"}'
