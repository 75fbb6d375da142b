"""The training loop: rows in, gradients back, weights on. Everything around it is called from here."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from training.config import DEFAULT_LEARNING_RATE, DEFAULT_LOSS_LEARNING_RATE, FitConfig
from training.data import TokenisedTexts, TokenRows
from training.embed import embed
from training.optimizers import SchedulerOptions, make_optimizer, make_scheduler
from training.progress import Progress, Reporter
from training.samplers import Sampler


class MetricLearning(nn.Module):
    """Encoder, miner and loss as one module, so that devices, precision and processes wrap one thing."""

    def __init__(self, encoder: nn.Module, loss: nn.Module, miner: nn.Module | None = None):
        super().__init__()
        self.encoder, self.loss, self.miner = encoder, loss, miner

    def forward(self, tokens: TokenRows, rows: np.ndarray, labels: torch.Tensor) -> torch.Tensor:
        """The loss of a batch, float32 scalar. `labels` are the class numbers of the rows, int64 [B]."""
        embeddings = embed(self.encoder, tokens, rows, labels.device)
        with torch.autocast(labels.device.type, enabled=False):  # distances need all their bits
            embeddings = embeddings.float()
            mined = self.miner(embeddings, labels) if self.miner else None
            return self.loss(embeddings, labels, mined)


def train(
    task: MetricLearning,
    texts: TokenisedTexts,
    sampler: Sampler,
    config: FitConfig,
    accelerator: Accelerator,
    report: Reporter,
) -> int:
    """Train the task in place for `config.epochs`.

    :returns: how many samples were trained on, repetitions counted.
    :raises FloatingPointError: the loss is no longer a number.
    """
    batches, accumulation = len(sampler), config.gradient_accumulation_steps
    options = config.scheduler_options or SchedulerOptions()
    optimizers = make_optimizers(task, config)
    steps = config.epochs * math.ceil(batches / accumulation)
    schedulers = [
        make_scheduler(config.scheduler, optimizer, options, batches=steps, epochs=config.epochs)
        for optimizer in optimizers
    ]
    per_batch, per_epoch = (schedulers, []) if options.scheduler_step == 'batch' else ([], schedulers)
    task, *optimizers = accelerator.prepare(task, *optimizers)
    task.train()
    seen, start = 0, time.perf_counter()
    for epoch in range(1, config.epochs + 1):
        total = torch.zeros((), device=accelerator.device)
        for step, rows in enumerate(sampler.batches(epoch), 1):
            labels = torch.from_numpy(texts.labels[rows]).long().to(accelerator.device)
            loss = task(texts.tokens, rows, labels)
            window = min(accumulation, batches - (step - 1) // accumulation * accumulation)  # the last may be short
            accelerator.backward(loss / window)
            if step % accumulation == 0 or step == batches:
                if config.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(task.parameters(), config.max_grad_norm)
                for part in (*optimizers, *per_batch):
                    part.step()
                task.zero_grad()

            seen += len(rows)
            total += loss.detach()
            if report.due() or step == batches:  # reading the loss waits for the device
                mean = total.item() / step
                if not math.isfinite(mean):
                    raise FloatingPointError(f'the loss is {mean} in step {step} of epoch {epoch}: lower learning_rate')
                seconds, done = time.perf_counter() - start, (epoch - 1) * batches + step
                left = seconds / done * (config.epochs * batches - done)
                report(Progress('Training', step, batches, epoch, config.epochs, mean, seen / seconds, left))
        for scheduler in per_epoch:
            scheduler.step()
    return seen


def make_optimizers(task: MetricLearning, config: FitConfig) -> list[torch.optim.Optimizer]:
    """One optimizer for the encoder, and one for the loss if it has weights of its own."""
    rate = config.learning_rate or DEFAULT_LEARNING_RATE
    optimizers = [make_optimizer(config.optimizer, task.encoder.parameters(), rate, config.optimizer_options)]
    if any(True for _ in task.loss.parameters()):
        name = config.loss_optimizer or config.optimizer
        parameters = task.loss.parameters()
        optimizers.append(make_optimizer(name, parameters, DEFAULT_LOSS_LEARNING_RATE, config.loss_optimizer_options))
    return optimizers
