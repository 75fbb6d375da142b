"""One iteration: from a batch of clicks to the best model that a method makes of it, and what that one is worth."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuner.inference.backbones import load_encoders
from registry import Registry
from registry.shards import DatasetReader
from training.callbacks.best_model import BestModelCheckpoint
from training.callbacks.training_checkpoint import Recovery
from training.clicks.comparing import Embedded, Verdict, judge_model
from training.clicks.examples import Judged
from training.clicks.significance import Interval
from training.errors import CallbackError, is_passing
from training.export import build_artifact
from training.interruption import Interruption
from training.iterations import parameters
from training.iterations.embedding import embed_by_model
from training.iterations.material import Material, gather
from training.iterations.search import Candidate, ParameterSearch
from training.iterations.tracking import FINISHED, INITIAL_RUN, PRUNED, Iteration, Tracker, Training
from training.iterations.watching import PREFIX, Pruned, Watch
from training.methods.method import Method
from training.pipeline import run_fit
from training.progress import Progress

logger = logging.getLogger(__name__)

DATA = 'clicks'
TRIALS, BEST = 'trials', 'best'
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Start:
    """The model that an iteration begins with, and whose place the best may take.

    :param artifact_id: None of a pretrained model.
    :param file: of the artifact.
    """

    artifact_id: str | None = None
    file: Path | None = None


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


@dataclass(frozen=True)
class Work:
    """Where and for whom an iteration is done.

    :param owner: what carries it: another one begins anew.
    :param name: of the model.
    :param folder: of the run.
    :param report: is told the progress.
    """

    registry: Registry
    account_id: str
    owner: str
    name: str
    folder: Path
    report: Callable[[Progress], None]
    recovery: Recovery
    interruption: Interruption | None = None


def iterate(work: Work, method: Method, batch_id: str, start: Start) -> Outcome:
    """Try the parameters of a method on a batch, and judge the best model. What a lost worker has done of it already is
    not done again.

    :raises DataError: there is too little to learn from.
    :raises ValueError: no training came to its end; the message is that of the last.
    """
    tracker = Tracker()
    seed = int(method.fit.get('seed', 0))
    # None: a GPU, where there is one
    device = 'cpu' if method.fit.get('device') == 'cpu' else None
    material = gather(work.registry, work.account_id, batch_id, method, seed, work.folder)
    if start.file is None:
        _keep_initial(tracker, method, work.folder / BEST)
    iteration = tracker.begin(work.account_id, method.name, batch_id, work.owner)
    last = tracker.last(work.account_id, method.name, iteration.id)
    source = start.file or method.model

    def embed(model: str | Path, part: Judged) -> Embedded:
        return embed_by_model(model, method.items.modality, part, material.items, device)

    trials = Trials(work, method, start, material, iteration, embed(source, material.validation))
    best = trials.run(last, seed)
    artifact = iteration.fetch_model(best.run_id, work.folder / BEST)
    verdict = judge_model(
        material.test,
        embed(source, material.test),
        embed(artifact, material.test),
        metric=method.metric,
        max_weight=method.clicks.max_weight,
        confidence=CONFIDENCE,
        seed=seed,
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
    """The trainings of an iteration, one with each set of parameters.

    :param before: what the model that they start from makes of the sessions by which they are compared.
    """

    work: Work
    method: Method
    start: Start
    material: Material
    iteration: Iteration
    before: Embedded

    def run(self, last: Iteration | None, seed: int) -> Training:
        """The best training.

        :param last: whose best parameters are tried first.
        """
        space, evaluations = self.method.search.space, self.method.search.evaluations
        known = self.iteration.trainings()
        # those that a lost worker had begun come before all others, for they go on
        begun = [parameters.read(space, training.texts) for training in known if training.outcome is None]
        first = [values for values in begun if values is not None]
        if last is not None:
            first += last.top(space, max(1, (evaluations + 1) // 2))
        search = ParameterSearch(self.method.search, seed, known, first or [parameters.middle(space)])
        failure: Exception | None = None
        while (candidate := search.ask()) is not None:
            try:
                self._train(search, candidate)
            except Exception as error:
                if is_passing(error):
                    raise
                logger.exception('The training with %s failed', candidate.parameters)
                search.tell(candidate, None)
                failure = error
        if not (finished := self._with_models()):
            raise failure or ValueError('no training came to its end')
        return max(finished, key=lambda training: training.quality or 0.0)

    def _train(self, search: ParameterSearch, candidate: Candidate) -> None:
        """One training: its model is kept if it is the best so far."""
        method, iteration, work = self.method, self.iteration, self.work
        title = f'Training {candidate.number} of {method.search.evaluations}'
        logger.info('%s: %s', title, candidate.parameters or 'the values of the method')
        run_id = iteration.start(candidate.parameters)
        watch = Watch(
            self.material,
            method.items.modality,
            self.before,
            method.metric,
            method.clicks.max_weight,
            lambda figures, epoch: iteration.log(run_id, figures, epoch),
            candidate.is_hopeless,
        )
        config = method.config(
            candidate.parameters,
            train_data=DATA,
            model_artifact=self.start.artifact_id,
            run_name=work.name,
            callbacks=[watch, BestModelCheckpoint(monitor=PREFIX + method.metric, mode='max')],
        )
        folder = work.folder / TRIALS / (self.start.artifact_id or 'pretrained') / candidate.name[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with _broken_off(iteration, run_id):
            try:
                result = run_fit(
                    config,
                    lambda name, _: DatasetReader([self.material.shard], name),
                    folder,
                    lambda progress: work.report(dataclasses.replace(progress, stage=f'{title}: {progress.stage}')),
                    artifact=self.start.file,
                    resume=True,
                    interruption=work.interruption,
                    recovery=work.recovery,
                )
            except CallbackError as error:
                if not isinstance(error.__cause__, Pruned) or watch.best is None:
                    raise
                logger.info('%s ends early: %s', title, error.__cause__)
                iteration.end(run_id, PRUNED, watch.best)
                search.tell(candidate, watch.best, is_pruned=True)
            else:
                assert watch.best is not None, 'there was an epoch'
                if all(watch.best > (other.quality or 0.0) for other in self._with_models() if other.run_id != run_id):
                    iteration.keep_model(run_id, result.artifact)
                iteration.end(run_id, FINISHED, watch.best)
                search.tell(candidate, watch.best)
        shutil.rmtree(folder, ignore_errors=True)

    def _with_models(self) -> list[Training]:
        """One at most, but where a worker was lost while it put one in the place of another."""
        found = self.iteration.trainings()
        return [training for training in found if training.outcome == FINISHED and training.has_model]


@contextmanager
def _broken_off(iteration: Iteration, run_id: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        iteration.break_off(run_id, 'FAILED')
        raise
    except BaseException:  # the process is asked to end
        iteration.break_off(run_id, 'KILLED')
        raise


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
