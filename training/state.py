"""What the training loop and its callbacks share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.optim.lr_scheduler import LRScheduler

    from training.config import FitConfig
    from training.progress import Reporter
    from training.task import Task


@dataclass
class TrainingState:
    """Where a training is. A callback may read all of it, put figures into `metrics`, and set `stop`.

    :param task: encoders and objective.
    :param epoch: from 1.
    :param step: batches of the epoch that are done.
    :param global_step: batches of the training that are done.
    :param steps_per_epoch: batches of an epoch.
    :param metrics: the latest figures by name: 'train_loss', 'val_loss', 'learning_rate', those of evaluations.
    :param loss_sum: of the epoch's batches so far, on the device: reading it waits for it.
    :param stop: set to True to end the training after this batch.
    :param stop_reason: why, for the log.
    :param directory: of the run; what is put here stays after the training.
    :param history: the figures as they were at the end of every epoch.
    :param scaler: of the gradients in fp16.
    :param identity: what the weights depend on beside the config, such as a digest of the data: a checkpoint is refused
        where it differs.
    :param is_main: False in all processes but the first of a training on several devices.
    """

    task: Task
    config: FitConfig
    directory: Path
    report: Reporter
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    schedulers: list[LRScheduler] = field(default_factory=list)
    epoch: int = 0
    step: int = 0
    global_step: int = 0
    steps_per_epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float | torch.Tensor = 0.0
    stop: bool = False
    stop_reason: str | None = None
    is_main: bool = True
    scaler: torch.amp.GradScaler | None = None
    identity: dict[str, Any] = field(default_factory=dict)
