"""One iteration: from a batch of clicks to the best model that a method makes of it, and what that one is worth."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuner.inference.backbones import load_encoders
from training.clicks.comparing import Verdict, judge_model
from training.clicks.significance import Interval
from training.errors import is_passing
from training.export import build_artifact
from training.iterations import parameters
from training.iterations.helping import (
    HelperFailed,
    await_helpers,
    collect,
    delegate,
    dismiss,
    find_helper,
    known_epochs,
    withdraw,
)
from training.iterations.material import Material
from training.iterations.search import Candidate, ParameterSearch
from training.iterations.tracking import FINISHED, INITIAL_RUN, PRUNED, Iteration, Tracker, Training
from training.iterations.training import Result, Setting, Start, Work, set_up, train, training_folder
from training.iterations.watching import PREFIX
from training.methods.method import Method

logger = logging.getLogger(__name__)

BEST = 'best'
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Outcome:
    """
    :param artifact: the file of the best model.
    :param is_promoted: whether it is to take the place of the one before.
    :param sentence: why, or why not.
    :param metrics: what is known of it, as JSON.
    :param iteration: where it comes from.
    """

    artifact: Path
    is_promoted: bool
    sentence: str
    metrics: dict[str, Any]
    iteration: Iteration


def iterate(work: Work, method: Method, batch_id: str, start: Start) -> Outcome:
    """Try the parameters of a method on a batch, and judge the best model. What a lost worker has done of it already is
    not done again.

    :raises DataError: there is too little to learn from.
    :raises ValueError: no training came to its end; the message is that of the last.
    """
    setting = set_up(work, method, batch_id, start)
    iteration, material = setting.iteration, setting.material
    if start.file is None:
        _keep_initial(iteration.tracker, method, work.folder / BEST)
    last = iteration.tracker.last(work.task.account_id, method.name, iteration.id)
    best = Trials(setting).run(last)
    artifact = iteration.fetch_model(best.run_id, work.folder / BEST)
    verdict = judge_model(
        material.test,
        setting.embed(setting.source, material.test),
        setting.embed(artifact, material.test),
        metric=method.metric,
        max_weight=method.clicks.max_weight,
        confidence=CONFIDENCE,
        seed=setting.seed,
    )
    iteration.log(best.run_id, {f'final_{name}': found.after.mean for name, found in verdict.metrics.items()}, 0)
    return Outcome(
        artifact=artifact,
        is_promoted=verdict.refusal is None,
        sentence=_sentence(method, verdict),
        metrics=_metrics(method, verdict, best, iteration, material),
        iteration=iteration,
    )


@dataclass(frozen=True, eq=False)
class Trials:
    """The trainings of an iteration, one with each set of parameters; `search.parallel` of them at the same time."""

    setting: Setting

    def run(self, last: Iteration | None) -> Training:
        """The best training.

        :param last: whose best parameters are tried first.
        """
        setting, iteration, search = self.setting, self.setting.iteration, self.setting.method.search
        known = iteration.trainings()
        # those that a lost worker had begun come before all others, for they go on
        begun = [parameters.read(search.space, training.texts) for training in known if training.outcome is None]
        first = [values for values in begun if values is not None]
        if last is not None:
            first += last.top(search.space, max(1, (search.evaluations + 1) // 2))
        first = first or [parameters.middle(search.space)]
        ended = [training for training in known if training.outcome is not None]
        epochs = known_epochs(iteration, setting.method.metric, ended)
        proposals = ParameterSearch(search, setting.seed, known, first, epochs)
        failure: Exception | None = None
        while candidates := proposals.ask_several(search.parallel):
            # in their own order, whichever came first: what is proposed next must not depend on the machines
            for candidate, result in self._train(candidates):
                if isinstance(result, Exception):
                    failure = result
                    proposals.tell(candidate, None)
                else:
                    proposals.tell(candidate, result.quality, is_pruned=result.artifact is None)
        if not (finished := self._with_models()):
            raise failure or ValueError('no training came to its end')
        return max(finished, key=_rank)

    def _train(self, candidates: Sequence[Candidate]) -> list[tuple[Candidate, Result | Exception]]:
        """Train with all of them: this process takes one, and another whenever it has none, and helpers take what the
        queue gives them. Returned is what came of each.
        """
        known = [training.name for training in self.setting.iteration.trainings() if training.outcome is not None]
        helpers = {candidate.name: find_helper(self.setting, candidate) for candidate in candidates}
        alone = [candidate for candidate in candidates if helpers[candidate.name] is None]
        helpers |= {candidate.name: delegate(self.setting, candidate, known) for candidate in alone[1:]}
        results: dict[str, Result | Exception] = {}
        while waiting := [candidate for candidate in candidates if candidate.name not in results]:
            news = {candidate.name: self._look(candidate, helpers[candidate.name]) for candidate in waiting}
            results |= {name: result for name, result in news.items() if result is not None}
            if not any(news.values()):
                await_helpers(self.setting, len(waiting))
        return [(candidate, results[candidate.name]) for candidate in candidates]

    def _look(self, candidate: Candidate, helper: str | None) -> Result | Exception | None:
        """What came of a training, which is done here if there is no helper for it; None while that one works on it."""
        if helper is None or withdraw(self.setting, helper):
            return self._attempt(candidate)
        result = collect(self.setting, helper, candidate)
        if isinstance(result, HelperFailed):
            logger.warning('%s: training with the same parameters here', result)
            return self._attempt(candidate)
        if isinstance(result, Result):
            self._conclude(candidate, result)
            dismiss(self.setting, helper)
        return result

    def _attempt(self, candidate: Candidate) -> Result | Exception:
        try:
            result = train(self.setting, candidate)
        except Exception as error:
            if is_passing(error):
                raise
            logger.exception('The training with %s failed', candidate.parameters)
            return error
        self._conclude(candidate, result)
        shutil.rmtree(training_folder(self.setting, candidate), ignore_errors=True)
        return result

    def _conclude(self, candidate: Candidate, result: Result) -> None:
        """Tell MLflow of the end of a training: its model is kept if it is the best so far."""
        iteration = self.setting.iteration
        run_id = iteration.start(candidate.parameters)
        if result.artifact is None:
            iteration.end(run_id, PRUNED, result.quality)
            return
        rank = (result.quality, candidate.name)
        if all(rank > _rank(other) for other in self._with_models() if other.run_id != run_id):
            iteration.keep_model(run_id, result.artifact)
        iteration.end(run_id, FINISHED, result.quality)

    def _with_models(self) -> list[Training]:
        """One at most, but where a worker was lost while it put one in the place of another."""
        found = self.setting.iteration.trainings()
        return [training for training in found if training.outcome == FINISHED and training.has_model]


def _rank(training: Training) -> tuple[float, str]:
    """The best is the highest. Of equals it is the same one whichever ended first."""
    return training.quality or 0.0, training.name


def _keep_initial(tracker: Tracker, method: Method, folder: Path) -> None:
    if tracker.keep_initial(method.name, method.model, lambda: _pack(method, folder)):
        logger.info('The model %s, which the method starts from, is kept as %s', method.model, INITIAL_RUN)


def _pack(method: Method, folder: Path) -> Path:
    """The pretrained model of a method as an artifact."""
    options: dict[str, Any] = dict(method.model_options or {})
    encoders = load_encoders(method.model, options=options, max_length=method.fit.get('max_length'))
    return build_artifact(
        {name: encoder.eval() for name, encoder in encoders.items()},
        name=INITIAL_RUN,
        config={'model': method.model},
        metrics={'before': {}, 'after': {}},
        target=folder / f'{INITIAL_RUN}.zip',
    )


def _sentence(method: Method, verdict: Verdict) -> str:
    if verdict.refusal is not None:
        return verdict.refusal
    found = verdict.metrics[method.metric]
    return (
        f'{method.metric} of {verdict.sessions} held-out sessions went from {found.before} to {found.after}, a '
        f'difference of {found.difference} ({found.significance})'
    )


def _metrics(
    method: Method, verdict: Verdict, best: Training, iteration: Iteration, material: Material
) -> dict[str, Any]:
    def interval(found: Interval) -> list[float]:
        return [found.mean, found.low, found.high]

    return {
        'before': {name: found.before.mean for name, found in verdict.metrics.items()},
        'after': {name: found.after.mean for name, found in verdict.metrics.items()},
        'promoted': verdict.refusal is None,
        'comparison': {
            name: {
                'before': interval(found.before),
                'after': interval(found.after),
                'difference': interval(found.difference),
                'p_value': found.p_value,
            }
            for name, found in verdict.metrics.items()
        },
        'sessions': verdict.sessions,
        'shared_items': material.shared_items,
        'parameters': parameters.read(method.search.space, best.texts) or {},
        'trainings': len([training for training in iteration.trainings() if training.outcome]),
        'experiment': iteration.name,
        **{PREFIX + name: value for name, value in verdict.shifts.items()},
    }
