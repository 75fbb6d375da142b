"""WandBLogger: figures go to Weights & Biases."""

from __future__ import annotations

import logging
import os
from typing import Any

from training.callbacks.logger import Logger
from training.state import TrainingState

logger = logging.getLogger(__name__)


class WandBLogger(Logger):
    """Makes a run of W&B, with the config. Without an API key the run stays on this machine, in the folder of the run.

    :param token: an API key, default `WANDB_API_KEY` or that of `wandb login`.
    :param wandb_args: arguments of `wandb.init`.
    """

    def __init__(self, token: str | None = None, wandb_args: dict[str, Any] | None = None):
        super().__init__()
        self._token, self.wandb_args = token, wandb_args or {}

    def open(self, state: TrainingState, config: dict[str, Any]) -> None:
        import wandb

        arguments = {'project': 'finetuner', 'name': config.get('run_name')} | self.wandb_args
        arguments['config'] = config | arguments.get('config', {})
        if self.run_id is not None:
            arguments |= {'id': self.run_id, 'resume': 'allow'}
        if 'mode' not in arguments and 'WANDB_MODE' not in os.environ and not self._has_key():
            logger.warning('There is no API key of W&B: the figures are kept in %s, for `wandb sync`', state.directory)
            arguments['mode'] = 'offline'
        options = wandb.Settings(api_key=self._token, silent=True, console='off')
        self._run = wandb.init(dir=str(state.directory), settings=options, reinit='create_new', **arguments)
        self.run_id = self._run.id

    def send(self, figures: dict[str, float], step: int) -> None:
        self._run.log(figures, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))

    def _has_key(self) -> bool:
        from wandb.sdk.lib import apikey

        return bool(self._token or apikey.api_key())
