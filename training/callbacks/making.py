"""All callbacks of a training, made from its config and called in an order that makes sense."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from training.callbacks.base import Callback, MeasuringCallback
from training.callbacks.best_model import BestModelCheckpoint
from training.callbacks.early_stopping import EarlyStopping
from training.callbacks.evaluation import EvaluationCallback
from training.callbacks.logger import Logger
from training.callbacks.mlflow_logger import MLFlowLogger
from training.callbacks.training_checkpoint import Recovery, TrainingCheckpoint
from training.callbacks.wandb_logger import WandBLogger
from training.callbacks.wise_ft import WiSEFTCallback
from training.errors import CallbackError, CallbackRefusal
from training.evaluator import Evaluator
from training.state import TrainingState

logger = logging.getLogger(__name__)

# What measures comes before what decides by it, and the checkpoint after all whose state it keeps. In the end the
# weights are made final before they are measured. `Callback` stands for those of the user.
ORDER = (EvaluationCallback, Callback, BestModelCheckpoint, EarlyStopping, WiSEFTCallback, TrainingCheckpoint, Logger)
ORDER_AT_END = (BestModelCheckpoint, WiSEFTCallback, Callback, EarlyStopping, EvaluationCallback)
LOSSES = ('train_loss', 'val_loss')


class Callbacks(Callback):
    """Several callbacks as one.

    :param members: called in the order that :data:`ORDER` says, those of one kind as they are given.
    """

    def __init__(self, members: Sequence[Callback]):
        self.members = sorted(members, key=lambda member: _rank(member, ORDER))
        for member in self.members:
            if isinstance(member, TrainingCheckpoint):
                member.others = [other for other in self.members if other is not member]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """`{'before': {name: value}, 'after': {name: value}}` of all that measure."""
        found = [member.metrics for member in self.members if isinstance(member, MeasuringCallback)]
        return {
            time: {name: value for metrics in found for name, value in metrics[time].items()}
            for time in ('before', 'after')
        }

    @property
    def examples(self) -> dict[str, dict[str, list[Any]]]:
        """`{'before': {query: [match, ...]}, 'after': ...}`, and, if there are any, whether each match is relevant:
        `{'relevant before': {query: [bool, ...]}, 'relevant after': ...}`."""
        found: dict[str, dict[str, list[Any]]] = {'before': {}, 'after': {}}
        for part in self._evaluations():
            for time, evaluation in (('before', part.before), ('after', part.after)):
                for query, matches in evaluation.examples.items():
                    name = query if query not in found[time] else f'{query} ({part.prefix.rstrip("_")})'
                    found[time][name] = matches
                    found.setdefault(f'relevant {time}', {})[name] = evaluation.relevance[query]
        return found

    def _evaluations(self) -> list[EvaluationCallback]:
        return [member for member in self.members if isinstance(member, EvaluationCallback)]

    def on_fit_begin(self, state: TrainingState) -> None:
        self._each(state, 'on_fit_begin', lambda member: member.on_fit_begin(state))
        if any(_rank(member, ORDER) == ORDER.index(Callback) for member in self.members):
            return  # those of the user may put any figure into the metrics
        known = dict.fromkeys(LOSSES, math.nan) | state.metrics
        watching = [member for member in self.members if isinstance(member, BestModelCheckpoint | EarlyStopping)]
        for member in watching:
            try:
                member.monitor.value(known)
            except ValueError as error:
                raise CallbackRefusal(f'the callback {member.name}: {error}') from error

    def on_resume(self, state: TrainingState) -> None:
        self._each(state, 'on_resume', lambda member: member.on_resume(state))

    def on_epoch_begin(self, state: TrainingState) -> None:
        self._each(state, 'on_epoch_begin', lambda member: member.on_epoch_begin(state))

    def on_batch_end(self, state: TrainingState) -> None:
        self._each(state, 'on_batch_end', lambda member: member.on_batch_end(state))

    def on_epoch_end(self, state: TrainingState) -> None:
        self._each(state, 'on_epoch_end', lambda member: member.on_epoch_end(state))

    def on_fit_end(self, state: TrainingState) -> None:
        members = sorted(self.members, key=lambda member: _rank(member, ORDER_AT_END))
        self._each(state, 'on_fit_end', lambda member: member.on_fit_end(state), members)

    def on_exception(self, state: TrainingState, error: BaseException) -> None:
        for member in self.members:
            try:
                member.on_exception(state, error)
            except Exception:  # the first error is what matters
                logger.exception('The callback %s failed in on_exception', member.name)

    def _each(
        self,
        state: TrainingState,
        event: str,
        call: Callable[[Callback], None],
        members: Sequence[Callback] | None = None,
    ) -> None:
        for member in members or self.members:
            try:
                call(member)
                state.metrics = {name: float(value) for name, value in state.metrics.items()}
            except Exception as error:
                what = f'the callback {member.name} failed in {event}'
                if isinstance(error, ValueError):
                    raise CallbackRefusal(f'{what}: {error}') from error
                raise CallbackError(f'{what}: {type(error).__name__}: {error}') from error


def make_callbacks(
    callbacks: Sequence[Any] | None,
    evaluators: Sequence[Evaluator] = (),
    *,
    resume: bool = False,
    is_main: bool = True,
    recovery: Recovery | None = None,
) -> Callbacks:
    """
    :param callbacks: as `FitConfig` holds them; see `training.callbacks.options.CallbackConfig`.
    :param evaluators: what measures, for each EvaluationCallback among them or by default.
    :param resume: go on from a checkpoint, if there is one and TrainingCheckpoint among the callbacks.
    :param is_main: False in all processes but the first of a training on several devices, which call no callbacks but
        go on from the same checkpoint.
    :param recovery: checkpoints are written for its sake too, and also without a TrainingCheckpoint.
    """
    members: list[Callback] = []
    makers: dict[str, Callable[..., Callback]] = {
        'BestModelCheckpoint': BestModelCheckpoint,
        'TrainingCheckpoint': lambda last_k_epochs: TrainingCheckpoint(last_k_epochs, resume=resume, recovery=recovery),
        'EarlyStopping': EarlyStopping,
        'WiSEFTCallback': WiSEFTCallback,
        'WandBLogger': lambda token, wandb_args: WandBLogger(token and token.get_secret_value(), wandb_args),
        'MLFlowLogger': MLFlowLogger,
    }
    for callback in callbacks or ():
        if isinstance(callback, Callback):
            members.append(callback)
        elif callback.name in makers:
            members.append(makers[callback.name](**dict(callback.options)))
    if recovery is not None and not any(isinstance(member, TrainingCheckpoint) for member in members):
        members.append(TrainingCheckpoint(resume=resume, recovery=recovery, is_given=False))
    if not is_main:
        return Callbacks([member for member in members if isinstance(member, TrainingCheckpoint)])
    watched = any(_reads_metrics(member) for member in members)
    for evaluator, prefix in zip(evaluators, prefixes(evaluators), strict=True):
        members.append(EvaluationCallback(evaluator, prefix, evaluator.options.steps_per_interval, watched))
    return Callbacks(members)


def prefixes(evaluators: Sequence[Evaluator]) -> list[str]:
    """What the names of each evaluator's metrics begin with: its `name` and its encoders. Of those that would have the
    same, the later ones begin with 'evaluation-2_', 'evaluation-3_' and so on."""
    chosen: list[str] = []
    for number, evaluator in enumerate(evaluators, 1):
        name = evaluator.options.name
        prefix = f'{name}_{evaluator.prefix}' if name else evaluator.prefix
        chosen.append(f'evaluation-{number}_{prefix}' if prefix in chosen else prefix)
    return chosen


def _rank(member: Callback, order: Sequence[type[Callback]]) -> int:
    own = order.index(Callback)
    kinds = [number for number, kind in enumerate(order) if kind is not Callback and isinstance(member, kind)]
    return kinds[0] if kinds else len(order) if isinstance(member, TrainingCheckpoint | Logger) else own


def _reads_metrics(member: Callback) -> bool:
    """Whether it may want figures of an evaluation at the end of an epoch."""
    if isinstance(member, BestModelCheckpoint | EarlyStopping):
        return member.monitor.figure not in LOSSES
    return not isinstance(member, TrainingCheckpoint | WiSEFTCallback)
