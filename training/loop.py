"""The training loop: rows in, gradients back, weights on. Everything around it is called from here."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from training.callbacks import Callback
from training.freezing import check_trainable, keep_frozen
from training.interruption import Interruption
from training.optimizers import SchedulerOptions, make_optimizers, make_scheduler, needs_closure
from training.progress import Progress
from training.samplers import Sampler
from training.state import TrainingState
from training.step import Step

logger = logging.getLogger(__name__)


def set_up_optimizers(state: TrainingState, sampler: Sampler, accelerator: Accelerator) -> None:
    """Make the optimizers and schedulers of a training.

    :raises ValueError: all weights are frozen.
    """
    config = state.config
    check_trainable(state.task)
    options = config.scheduler_options or SchedulerOptions()
    steps = config.epochs * math.ceil(len(sampler) / config.gradient_accumulation_steps)
    optimizers = make_optimizers(state.task, config)
    state.schedulers = [
        make_scheduler(config.scheduler, optimizer, options, batches=steps, epochs=config.epochs)
        for optimizer in optimizers
    ]
    state.optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]
    state.steps_per_epoch = len(sampler)


def train(
    state: TrainingState,
    step: Step,
    sampler: Sampler,
    callbacks: Sequence[Callback],
    accelerator: Accelerator,
    validate: Callable[[], float] | None = None,
    interruption: Interruption | None = None,
) -> int:
    """Train `state.task` in place, from where the state is to the last epoch or until somebody sets `state.stop`.

    :param validate: the loss on held-out examples, computed after every epoch.
    :returns: how many examples were trained on, repetitions counted.
    :raises FloatingPointError: the loss is no longer a number.
    :raises SystemExit: the process was asked to end; the callbacks have seen the state as it was after a batch.
    """
    task, config, report = state.task, state.config, state.report
    interruption = interruption or Interruption()
    per_batch = (config.scheduler_options or SchedulerOptions()).scheduler_step == 'batch'
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    seen = 0
    with reporting_exceptions(state, callbacks):
        notify(callbacks, 'on_fit_begin', state)
        state.stop = agreed(state.stop, accelerator)
        start, first_step = time.perf_counter(), state.global_step
        for epoch in range(max(state.epoch, 1), config.epochs + 1):
            done = state.step if epoch == state.epoch else 0  # of an epoch that an earlier process began
            # an epoch that is in the history has ended; one whose batches are all done may have been left before that
            if state.stop or len(state.history) >= epoch:
                continue
            state.epoch, state.step = epoch, done
            state.loss_sum = total = torch.tensor(float(state.loss_sum) if done else 0.0, device=accelerator.device)
            with interruption.deferred():
                train_mode(state)
                notify(callbacks, 'on_epoch_begin', state)
                for window in windows(sampler.batches(epoch), config.gradient_accumulation_steps, skip=done):
                    loss = take_step(state, step, window, parameters, accelerator)
                    for scheduler in state.schedulers if per_batch else ():
                        scheduler.step()
                    state.step += len(window)
                    state.global_step += len(window)
                    total += loss * len(window)
                    seen += sum(map(len, window))
                    last = state.step == len(sampler)
                    if report.due() or last:  # reading the loss waits for the device
                        mean = total.item() / state.step
                        if not math.isfinite(mean):
                            raise FloatingPointError(
                                f'the loss is {mean} in step {state.step} of epoch {epoch}: lower learning_rate'
                            )
                        state.metrics |= {'train_loss': mean, 'learning_rate': learning_rate(state)}
                        seconds = time.perf_counter() - start
                        left = seconds / (state.global_step - first_step)
                        left *= config.epochs * len(sampler) - state.global_step
                        rate = seen / seconds
                        report(Progress('Training', state.step, len(sampler), epoch, config.epochs, mean, rate, left))
                    if config.time_limit is not None and time.perf_counter() - start > config.time_limit:
                        stop(state, f'time_limit: {config.time_limit:g} seconds have passed')
                    # a signal that comes later waits until the next batch is done, and one counts for all processes
                    ending, state.stop = agree([interruption.requested, state.stop], accelerator)
                    if ending:
                        stop(state, 'the process was asked to end')
                    notify(callbacks, 'on_batch_end', state)
                    if ending:
                        interruption.exit()
                    if state.stop:
                        break
                    train_mode(state)  # an evaluation may have changed it
                step.reduce_buffers()
                if agreed(interruption.requested, accelerator):  # while the callbacks looked at the last batch
                    interruption.exit()
            if state.step < len(sampler):  # the epoch is broken off, and may go on elsewhere
                break
            for scheduler in () if per_batch else state.schedulers:
                scheduler.step()
            if validate is not None:
                state.metrics['val_loss'] = validate()
            notify(callbacks, 'on_epoch_end', state)
            with interruption.deferred():
                state.history.append({'epoch': float(epoch), **state.metrics})
                ending, state.stop = agree([interruption.requested, state.stop], accelerator)
                if ending:
                    interruption.exit()
        if state.stop:
            logger.info(
                'Stopped in epoch %d of %d, after %d of its %d batches: %s',
                state.epoch,
                config.epochs,
                state.step,
                len(sampler),
                state.stop_reason or 'a callback asked for it',
            )
        notify(callbacks, 'on_fit_end', state)
    return seen


def take_step(
    state: TrainingState,
    step: Step,
    window: Sequence[np.ndarray],
    parameters: Sequence[torch.nn.Parameter],
    accelerator: Accelerator,
) -> torch.Tensor:
    """One step of all optimizers on the mean loss of some batches, which is returned."""
    config = state.config

    def closure() -> Any:
        for parameter in parameters:
            parameter.grad = None
        seed = config.seed + state.global_step
        losses = [step.backward(rows, 1 / len(window), seed + number) for number, rows in enumerate(window)]
        loss = torch.stack(losses).mean()
        step.reduce_gradients()
        if config.max_grad_norm is not None:
            accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        return loss

    if any(needs_closure(optimizer) for optimizer in state.optimizers):
        losses: list[torch.Tensor] = []

        def noted() -> float:  # accelerate does not hand on what an optimizer gives
            losses.append(closure())
            return losses[-1].item()

        for optimizer in state.optimizers:
            optimizer.step(noted)
        return losses[0]
    loss = closure()
    for optimizer in state.optimizers:
        optimizer.step()
    return loss


def windows(batches: Iterable[np.ndarray], size: int, skip: int = 0) -> Iterator[list[np.ndarray]]:
    """The batches of each step, `size` of them; the last step of an epoch may have fewer."""
    remaining = islice(batches, skip, None)
    while window := list(islice(remaining, size)):
        yield window


def train_mode(state: TrainingState) -> None:
    state.task.train()
    for encoder in state.task.by_name.values():
        keep_frozen(encoder)


def learning_rate(state: TrainingState) -> float:
    return float(state.optimizers[0].param_groups[-1]['lr'])


def stop(state: TrainingState, reason: str) -> None:
    state.stop, state.stop_reason = True, state.stop_reason or reason


def agreed(flag: bool, accelerator: Accelerator) -> bool:
    """True if it is in any of the processes."""
    return agree([flag], accelerator)[0]


def agree(flags: Sequence[bool], accelerator: Accelerator) -> list[bool]:
    """Each is True if it is in any of the processes."""
    if accelerator.num_processes == 1:
        return list(flags)
    shared = torch.tensor([float(flag) for flag in flags], device=accelerator.device)
    torch.distributed.all_reduce(shared)
    return [value > 0 for value in shared.tolist()]


def notify(callbacks: Sequence[Callback], event: str, state: TrainingState) -> None:
    for callback in callbacks:
        getattr(callback, event)(state)


@contextmanager
def reporting_exceptions(state: TrainingState, callbacks: Sequence[Callback]) -> Iterator[None]:
    """Callbacks learn why a training ended early."""
    try:
        yield
    except BaseException as error:
        for callback in callbacks:
            callback.on_exception(state, error)
        raise
