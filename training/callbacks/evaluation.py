"""EvaluationCallback: retrieval metrics before, during and after the training."""

from __future__ import annotations

import logging

from training.callbacks.base import MeasuringCallback
from training.evaluator import Evaluation, Evaluator
from training.state import TrainingState

logger = logging.getLogger(__name__)


class EvaluationCallback(MeasuringCallback):
    """Puts the metrics of an evaluator into `state.metrics`, and keeps those before and after.

    :param prefix: of the names of the metrics, with its underscore; '' for none.
    :param steps_per_interval: evaluate every so many batches, too.
    :param every_epoch: evaluate at the end of every epoch, too.
    """

    def __init__(
        self, evaluator: Evaluator, prefix: str = '', steps_per_interval: int | None = None, every_epoch: bool = False
    ):
        self.evaluator, self.prefix = evaluator, prefix
        self.steps_per_interval, self.every_epoch = steps_per_interval, every_epoch
        self.before = self.after = Evaluation()
        self._evaluated = 0  # intervals
        self._latest = 0  # the step

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        return {'before': self.before.metrics, 'after': self.after.metrics}

    def on_fit_begin(self, state: TrainingState) -> None:
        with state.report.stage('Evaluating before'):
            self.before = self._evaluate(state)

    def on_batch_end(self, state: TrainingState) -> None:
        # with gradient accumulation several batches end at once
        if self.steps_per_interval and state.global_step // self.steps_per_interval > self._evaluated:
            self._evaluated = state.global_step // self.steps_per_interval
            self._evaluate_on_the_way(state)

    def on_epoch_end(self, state: TrainingState) -> None:
        if self.every_epoch and self._latest != state.global_step:
            self._evaluate_on_the_way(state)

    def on_fit_end(self, state: TrainingState) -> None:
        with state.report.stage('Evaluating after'):
            self.after = self._evaluate(state)
        for name, after in self.after.metrics.items():
            before = self.before.metrics[name]
            logger.info("Metric: '%s' before fine-tuning: %.5f after fine-tuning: %.5f", name, before, after)

    def on_resume(self, state: TrainingState) -> None:
        self._evaluated = state.global_step // (self.steps_per_interval or 1)

    def _evaluate_on_the_way(self, state: TrainingState) -> None:
        self._latest = state.global_step
        with state.report.stage('Evaluating'):
            figures = self._evaluate(state, examples=False).metrics
        shown = ', '.join(f'{name} {value:.5f}' for name, value in figures.items())
        logger.info('Epoch %d, step %d of %d: %s', state.epoch, state.step, state.steps_per_epoch, shown)

    def _evaluate(self, state: TrainingState, examples: bool = True) -> Evaluation:
        found = self.evaluator(state.task, version=state.global_step, examples=examples)
        found.metrics = {f'{self.prefix}{name}': value for name, value in found.metrics.items()}
        state.metrics |= found.metrics
        return found
