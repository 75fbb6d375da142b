"""WandBLogger: figures go to Weights & Biases."""

from __future__ import annotations

import logging
import netrc
import os
from typing import Any
from urllib.parse import urlsplit

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
        os.environ.setdefault('WANDB_ERROR_REPORTING', 'false')
        import wandb

        logging.getLogger('wandb').setLevel(logging.WARNING)
        arguments: dict[str, Any] = {'project': 'finetuner', 'name': config.get('run_name')} | self.wandb_args
        arguments['config'] = config | (arguments.get('config') or {})
        if self.run_id is not None:
            arguments |= {'id': self.run_id, 'resume': 'allow'}
        if 'mode' not in arguments and 'WANDB_MODE' not in os.environ and not self._has_key():
            logger.warning('There is no API key of W&B: the figures are kept in %s, for `wandb sync`', state.directory)
            arguments['mode'] = 'offline'
        # neither the sources nor the log of the training: only figures
        settings = wandb.Settings(
            api_key=self._token, silent=True, console='off', disable_git=True, save_code=False, x_disable_meta=True
        )
        state.directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(dir=str(state.directory), settings=settings, reinit='create_new', **arguments)
        self.run_id = self._run.id

    def send(self, figures: dict[str, float], step: int) -> None:
        self._run.log(figures, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))

    def _has_key(self) -> bool:
        if self._token or os.environ.get('WANDB_API_KEY'):
            return True
        host = urlsplit(os.environ.get('WANDB_BASE_URL') or 'https://api.wandb.ai').hostname or ''
        try:
            return netrc.netrc(os.environ.get('NETRC')).authenticators(host) is not None
        except (OSError, netrc.NetrcParseError):
            return False
