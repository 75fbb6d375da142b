"""WiSEFTCallback: a mean of the weights before and after the training (https://arxiv.org/abs/2109.01903)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from training.callbacks.base import Callback
from training.checkpoint import weights, write_tensors
from training.state import TrainingState

LORA = 'lora_'  # in the names of the adapters that peft adds


class WiSEFTCallback(Callback):
    """In the end the weights are (1 - alpha) × those before + alpha × those after.

    The weights before are kept in a file, and read back one by one. Of a low-rank adapter B·A, which begins as zero,
    the factor that begins as zero is scaled, so that the mean is that of the merged weights.
    """

    FILE = 'before.safetensors'

    def __init__(self, alpha: float):
        self.alpha = alpha

    def on_fit_begin(self, state: TrainingState) -> None:
        write_tensors(self._file(state), weights(state.task))

    @torch.no_grad()
    def on_fit_end(self, state: TrainingState) -> None:
        with safe_open(self._file(state), 'pt') as before:
            for name, after in weights(state.task).items():
                if after.is_floating_point():
                    after.copy_(self._mean(name, before.get_tensor(name).to(after.device), after))
        self._file(state).unlink()

    def _mean(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        if LORA in name:
            return after if bool(before.any()) else self.alpha * after
        return torch.lerp(before, after, self.alpha)

    def _file(self, state: TrainingState) -> Path:
        return state.directory / self.FILE
