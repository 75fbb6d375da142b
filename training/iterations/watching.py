"""Measuring a training by held-out sessions at the end of every epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from training.callbacks.base import MeasuringCallback
from training.clicks.comparing import Embedded, collapse_of
from training.clicks.ranking import distance_shifts, ranking_metrics, session_scores, session_weights
from training.iterations.embedding import embed_by_encoders
from training.iterations.material import Material
from training.state import TrainingState

logger = logging.getLogger(__name__)

PREFIX = 'test_'
"""Of the figures of held-out sessions."""


class Pruned(Exception):
    """The training is not worth to be gone on with."""


class Watch(MeasuringCallback):
    """Puts the ranking metrics of the sessions by which trainings are compared into the figures of every epoch.

    The main one is 0 after an epoch in which the model has collapsed: whatever it ranks, it would not be promoted, and
    must not take the place of a model that might be.

    :param modality: of the items.
    :param before: what the model that the iteration starts from makes of these sessions.
    :param metric: the main one.
    :param report: is told the figures of an epoch, and its number.
    :param is_hopeless: is asked, given the main metric and the epoch, whether to end it here.
    :param max_weight: of a click.
    """

    def __init__(
        self,
        material: Material,
        modality: str,
        before: Embedded,
        metric: str,
        max_weight: float,
        report: Callable[[dict[str, float], int], None],
        is_hopeless: Callable[[float, int], bool],
    ):
        self._material, self._modality, self._metric = material, modality, metric
        self._report, self._is_hopeless = report, is_hopeless
        judged = material.validation
        self._before, self._scores = before, session_scores(judged.sessions, before.queries, before.items)
        self._clicked = [number for number, entry in enumerate(judged.sessions) if entry.clicks.any()]
        self._gains = judged.gains(max_weight)
        self.best: float | None = None
        self._rankings = {'before': self._ranking(self._scores), 'after': dict[str, float]()}

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Of the model that the training starts from, and of its best epoch."""
        return self._rankings

    def on_epoch_end(self, state: TrainingState) -> None:
        figures, ranking = self._measure(state)
        state.metrics |= figures
        losses = {'train_loss': state.metrics['train_loss']} if 'train_loss' in state.metrics else {}
        self._report(figures | losses, state.epoch)
        value = figures[PREFIX + self._metric]
        if self.best is None or value > self.best:
            self.best, self._rankings['after'] = value, ranking
        if self._is_hopeless(value, state.epoch):
            raise Pruned(f'{self._metric} is {value:.4f} after epoch {state.epoch}')

    def state_dict(self) -> dict[str, Any]:
        return {'best': self.best, 'after': self._rankings['after']}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.best, self._rankings['after'] = values['best'], values.get('after', {})

    def _measure(self, state: TrainingState) -> tuple[dict[str, float], dict[str, float]]:
        """The figures of an epoch by their names in MLflow, and how it ranks."""
        judged, items = self._material.validation, self._material.items
        embedded = embed_by_encoders(state.task.by_name, self._modality, judged, items)
        scores = session_scores(judged.sessions, embedded.queries, embedded.items)
        ranking = self._ranking(scores)
        found = ranking | distance_shifts(judged.sessions, self._scores, scores)
        if collapse := collapse_of(self._before, embedded):
            logger.warning('Epoch %d counts as one without gain: %s', state.epoch, collapse)
            found[self._metric] = 0.0
        return {PREFIX + name: value for name, value in found.items()}, ranking

    def _ranking(self, scores: Sequence[np.ndarray]) -> dict[str, float]:
        """
        :param scores: of each session.
        """
        gains = [self._gains[number] for number in self._clicked]
        metrics = ranking_metrics([scores[number] for number in self._clicked], gains)
        weights = session_weights(gains)
        return {name: float(np.average(values, weights=weights)) for name, values in metrics.items()}
