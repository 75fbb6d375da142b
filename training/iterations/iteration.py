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
from training.callbacks.making import CallbackError
from training.callbacks.training_checkpoint import Recovery
from training.clicks.comparing import Embedded, Verdict, judge_model
from training.clicks.significance import Interval
from training.errors import is_passing
from training.export import build_artifact
from training.interruption import Interruption
from training.iterations import parameters
from training.iterations.embedding import embed_by_model
from training.iterations.material import Material, gather
from training.iterations.search import Candidate, ParameterSearch
from training.iterations.tracking import FINISHED, INITIAL_RUN, PROMOTED, PRUNED, REFUSED, Iteration, Tracker, Training
from training.iterations.watching import PREFIX, Pruned, Watch
from training.methods.method import Method
from training.pipeline import run_fit
from training.progress import Progress

logger = logging.getLogger(__name__)

DATA = 'clicks'
TRIALS = 'trials'
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
    """

    artifact: Path
    is_promoted: bool
    sentence: str
    metrics: dict[str, Any]


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


def iterate(work: Work, method: Method, batch_id: str, start: Start, tracker: Tracker | None = None) -> Outcome:
    """Try the parameters of a method on a batch, and judge the best model. What a lost worker has done of it already is
    not done again.

    :raises DataError: there is too little to learn from.
    :raises ValueError: no training came to its end; the message is that of the last.
    """
    tracker = tracker or Tracker()
    seed = int(method.fit.get('seed', 0))
    # None: a GPU, where there is one
    device = 'cpu' if method.fit.get('device') == 'cpu' else None
    material = gather(work.registry, work.account_id, batch_id, method, seed, work.folder)
    if start.file is None and tracker.keep_initial(method.name, method.model, lambda folder: _pack(method, folder)):
        logger.info('The model %s, which the method starts from, is kept as %s', method.model, INITIAL_RUN)
    iteration = tracker.begin(work.account_id, method.name, batch_id, work.owner)
    last = tracker.last(work.account_id, method.name, iteration.id)
    modality = method.items.modality
    source = start.file or method.model

    def embed(model: str | Path, part: Any) -> Embedded:
        return embed_by_model(model, modality, part, material.items, device)

    before = embed(source, material.validation)
    best = _search(work, method, start, material, iteration, last, seed, before)
    artifact = iteration.fetch_model(best.run_id, work.folder / 'best')
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
    )


def conclude(outcome: Outcome, account_id: str, method: str, batch_id: str, owner: str) -> None:
    """Note in MLflow what became of an iteration, after the registry knows. With a model that was promoted, those of
    earlier iterations go; with one that was not, all stays for the next one to start from."""
    tracker = Tracker()
    iteration = tracker.begin(account_id, method, batch_id, owner)
    iteration.conclude(PROMOTED if outcome.is_promoted else REFUSED)
    if outcome.is_promoted:
        tracker.remove_others(account_id, method, iteration.id)


def _search(
    work: Work,
    method: Method,
    start: Start,
    material: Material,
    iteration: Iteration,
    last: Iteration | None,
    seed: int,
    before: Embedded,
) -> Training:
    """Train with one set of parameters after the other, and return the best training."""
    space = method.search.space
    known = iteration.trainings()
    # those that a lost worker had begun come first, for they go on; then what was best in the last iteration
    begun = [parameters.read(space, training.texts) for training in known if training.outcome is None]
    first = [values for values in begun if values is not None]
    if last is not None:
        first += last.top(space, max(1, (method.search.evaluations + 1) // 2))
    search = ParameterSearch(method.search, seed, known, first or [parameters.middle(space)])
    failure: Exception | None = None
    while (candidate := search.ask()) is not None:
        try:
            _train(work, method, start, material, iteration, search, candidate, before)
        except Exception as error:
            if is_passing(error):
                raise
            logger.exception('The training with %s failed', candidate.parameters)
            search.tell(candidate, None)
            failure = error
    if not (finished := _with_models(iteration)):
        raise failure or ValueError('no training came to its end')
    return max(finished, key=lambda training: training.quality or 0.0)


def _with_models(iteration: Iteration) -> list[Training]:
    """One at most, but where a worker was lost while it put one in the place of another."""
    return [training for training in iteration.trainings() if training.outcome == FINISHED and training.has_model]


def _train(
    work: Work,
    method: Method,
    start: Start,
    material: Material,
    iteration: Iteration,
    search: ParameterSearch,
    candidate: Candidate,
    before: Embedded,
) -> None:
    """One training: its model is kept if it is the best so far."""
    title = f'Training {candidate.number} of {method.search.evaluations}'
    logger.info('%s: %s', title, candidate.parameters or 'the values of the method')
    run_id = iteration.start(candidate.parameters)
    watch = Watch(
        material,
        method.items.modality,
        before,
        method.metric,
        method.clicks.max_weight,
        lambda figures, epoch: iteration.log(run_id, figures, epoch),
        candidate.is_hopeless,
    )
    monitor = {'monitor': PREFIX + method.metric, 'mode': 'max'}
    config = method.config(
        candidate.parameters,
        train_data=DATA,
        model_artifact=start.artifact_id,
        run_name=work.name,
        callbacks=[watch, {'name': 'BestModelCheckpoint', 'options': monitor}],
    )
    folder = work.folder / TRIALS / (start.artifact_id or 'pretrained') / candidate.name[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with _broken_off(iteration, run_id):
        try:
            result = run_fit(
                config,
                lambda name, _: DatasetReader([material.shard], name),
                folder,
                lambda progress: work.report(dataclasses.replace(progress, stage=f'{title}: {progress.stage}')),
                artifact=start.file,
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
            if all(watch.best > (other.quality or 0.0) for other in _with_models(iteration) if other.run_id != run_id):
                iteration.keep_model(run_id, result.artifact)
            iteration.end(run_id, FINISHED, watch.best)
            search.tell(candidate, watch.best)
    shutil.rmtree(folder, ignore_errors=True)


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
        f'difference of {found.difference} (p = {found.p_value:.3f})'
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
