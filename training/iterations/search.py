"""Which parameters are tried: those that were best before, and what Optuna proposes after them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from training.iterations import parameters
from training.iterations.parameters import Parameters
from training.iterations.tracking import FINISHED, Training
from training.methods.method import Range, Search

logger = logging.getLogger(__name__)

ATTEMPTS = 100
"""Proposals in a row that were tried before, after which the space counts as exhausted."""
FIRST_JUDGED = 2
"""The epoch from which on a training may be judged hopeless, and how many trainings come before any is."""


@dataclass
class Candidate:
    """Parameters to be tried.

    :param number: from 1 on.
    """

    parameters: Parameters
    number: int
    trial: optuna.Trial

    @property
    def name(self) -> str:
        return parameters.name_of(self.parameters)

    def is_hopeless(self, quality: float, epoch: int) -> bool:
        """Whether a training that has come so far is worse than half of those before it were by then."""
        self.trial.report(quality, epoch)
        return bool(self.trial.should_prune())


class ParameterSearch:
    """Proposes parameters, each once. The same seed, and the same qualities, give the same proposals.

    :param search: the space, and how many are tried.
    :param known: trainings that have come to their end, such as those of a worker that was lost.
    :param first: what is tried before anything else.
    :param epochs: the qualities of known trainings, by name and epoch.
    """

    def __init__(
        self,
        search: Search,
        seed: int,
        known: Sequence[Training] = (),
        first: Sequence[Parameters] = (),
        epochs: Mapping[str, Mapping[int, float]] | None = None,
    ):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {name: _distribution(values) for name, values in search.space.items()}
        self._evaluations, self._seen = search.evaluations, set[str]()
        startup = max(2, search.evaluations // 3)
        self._study = optuna.create_study(
            direction='maximize',
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST_JUDGED, n_warmup_steps=FIRST_JUDGED),
        )
        for training in known:
            values = parameters.read(search.space, training.texts)
            if training.outcome is None or values is None or training.quality is None:
                continue
            self._seen.add(training.name)
            state = TrialState.COMPLETE if training.outcome == FINISHED else TrialState.PRUNED
            steps = dict((epochs or {}).get(training.name, {}))
            if not steps and state == TrialState.PRUNED:  # it counts by the last that was seen of it
                steps = {FIRST_JUDGED: training.quality}
            self._study.add_trial(
                create_trial(
                    state=state,
                    params=values,
                    distributions=self._space,
                    value=training.quality,
                    intermediate_values=steps,
                )
            )
        for values in first:
            if parameters.name_of(values) not in self._seen:
                self._study.enqueue_trial(values)

    def ask_several(self, count: int) -> list[Candidate]:
        """At most so many, none of which knows what comes of the others."""
        found: list[Candidate] = []
        while len(found) < count and (candidate := self.ask()) is not None:
            found.append(candidate)
        return found

    def ask(self) -> Candidate | None:
        """What to try next; None if enough were tried, or nothing is left."""
        if len(self._seen) >= self._evaluations:
            return None
        for _ in range(ATTEMPTS):
            trial = self._study.ask(self._space)
            values = dict(trial.params)
            name = parameters.name_of(values)
            if name not in self._seen:
                self._seen.add(name)
                return Candidate(values, len(self._seen), trial)
            self._study.tell(trial, state=TrialState.FAIL)
        logger.info('%d sets of parameters were tried: nothing else was proposed', len(self._seen))
        return None

    def tell(self, candidate: Candidate, quality: float | None, is_pruned: bool = False) -> None:
        """What came of it; None if the training failed."""
        if quality is None:
            self._study.tell(candidate.trial, state=TrialState.FAIL)
        elif is_pruned:
            self._study.tell(candidate.trial, state=TrialState.PRUNED)
        else:
            self._study.tell(candidate.trial, quality)


def _distribution(values: Range | list[Any]) -> BaseDistribution:
    if isinstance(values, Range):
        return FloatDistribution(values.low, values.high, log=values.log)
    return CategoricalDistribution(values)
