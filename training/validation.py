"""Held-out examples and the loss on them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping

import numpy as np

from finetuner.excepts import DataError
from training.check import fits
from training.config import FitConfig
from training.data import Examples
from training.embed import Embedder
from training.losses import has_class_weights
from training.samplers import make_sampler
from training.step import Step

logger = logging.getLogger(__name__)


def split(examples: Examples, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to hold out, both ascending. Pairs that hang together are not parted.

    :raises DataError: too little is left of either.
    """
    rows = np.arange(len(examples))
    if not share:
        return rows, rows[:0]
    units = examples.labels if examples.labels is not None and not examples.classes else rows
    names = np.unique(units)
    chosen = np.random.default_rng((seed, 1)).permutation(names)[: round(share * len(names))]
    held_out = np.isin(units, chosen)
    if not held_out.any() or held_out.all():
        raise DataError(f'val_split {share:g} of {len(rows)} examples of {examples.name} leaves nothing on one side')
    return rows[~held_out], rows[held_out]


def make_validation(
    config: FitConfig,
    step: Step,
    held_out: np.ndarray,
    eval_set: Examples | None,
    batch_size: int,
    embedders_of: Callable[[Examples], Mapping[str, Embedder]],
) -> Callable[[], float] | None:
    """What computes the loss on held-out examples: rows of the training data, or data of their own.

    :raises ValueError: there is none, and a callback watches it.
    """
    examples, rows = step.examples, held_out
    class_weights = has_class_weights(config.loss, config.loss_options)
    if class_weights and not step.examples.classes:  # groups of other pairs are other classes
        wanted = len(rows) or eval_set is not None
        if wanted:
            _explain(config, f'{config.loss} knows the groups of the training data alone')
        return None
    if eval_set is not None:
        if not fits(config.shape, eval_set.reader):
            _explain(config, f'{config.loss} learns from other data than {eval_set.name} holds')
            return None
        examples, rows = eval_set, np.arange(len(eval_set))
        if eval_set.classes:
            known = step.examples.classes
            labels = eval_set.labels_as(known)
            examples = dataclasses.replace(eval_set, labels=labels)
            if class_weights:  # there are none for other classes
                rows = rows[labels < len(known)]
        elif class_weights:  # nor for groups
            rows = rows[:0]
        if not len(rows):
            _explain(config, f'{eval_set.name} holds no class of the training data')
            return None
        step = Step(step.task, examples, embedders_of(eval_set), step.accelerator, step.budgets)
    if not len(rows):
        return None
    sampler = make_sampler(config, rows, examples, batch_size)

    def validate() -> float:
        step.task.eval()
        total, count = 0.0, 0
        for batch in sampler.batches(0):
            total += step.loss(batch).item() * len(batch)
            count += len(batch)
        return total / count

    return validate


def _explain(config: FitConfig, why: str) -> None:
    """Say why there is no val_loss.

    :raises ValueError: a callback watches it.
    """
    for callback in config.callbacks or []:
        if getattr(getattr(callback, 'options', None), 'monitor', None) == 'val_loss':
            raise ValueError(f'{callback.name} watches val_loss, and there is none: {why}')
    logger.warning('There is no val_loss: %s', why)
