"""One training of an iteration, with one set of parameters: in the process of the task, or in that of a helper."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry import Registry, RunRecord
from registry.records import TuningTask
from registry.shards import DatasetReader
from training.callbacks.best_model import BestModelCheckpoint
from training.callbacks.training_checkpoint import Recovery
from training.clicks.comparing import Embedded
from training.clicks.examples import Judged
from training.errors import CallbackError
from training.interruption import Interruption
from training.iterations.embedding import embed_by_model
from training.iterations.material import Material, gather
from training.iterations.search import Candidate
from training.iterations.tracking import Iteration, Tracker
from training.iterations.watching import PREFIX, Pruned, Watch
from training.methods.method import Method
from training.pipeline import run_fit
from training.progress import Progress

logger = logging.getLogger(__name__)

DATA = 'clicks'
TRIALS = 'trials'


@dataclass(frozen=True)
class Start:
    """The model that an iteration begins with, and whose place the best may take.

    :param artifact_id: None of a pretrained model.
    :param file: of the artifact.
    """

    artifact_id: str | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Work:
    """Where and for whom an iteration is done.

    :param run: that carries the task.
    :param folder: of this process, for what is needed on the way.
    :param report: is told the progress.
    """

    registry: Registry
    task: TuningTask
    run: RunRecord
    folder: Path
    report: Callable[[Progress], None]
    recovery: Recovery
    interruption: Interruption | None = None


@dataclass(frozen=True, eq=False)
class Setting:
    """What all trainings of an iteration have in common.

    :param before: what the model that they start from makes of the sessions by which they are compared.
    """

    work: Work
    method: Method
    start: Start
    material: Material
    iteration: Iteration
    before: Embedded

    @property
    def seed(self) -> int:
        return seed_of(self.method)

    def embed(self, model: str | Path, part: Judged) -> Embedded:
        return _embed(self.method, self.material, model, part)

    @property
    def source(self) -> str | Path:
        return self.start.file or self.method.model


@dataclass(frozen=True)
class Result:
    """What came of a training.

    :param quality: the main metric of its best epoch, over the sessions by which trainings are compared.
    :param artifact: the file of its model; None if it ended early, for it was hopeless.
    """

    quality: float
    artifact: Path | None


def set_up(work: Work, method: Method, batch_id: str, start: Start, experiment_id: str | None = None) -> Setting:
    """Gather what an iteration needs. A helper of the same task finds the same.

    :param experiment_id: of the iteration, for a helper; None begins it, or goes on with it.
    :raises DataError: there is too little to learn from.
    """
    material = gather(work.registry, work.task.account_id, batch_id, method, seed_of(method), work.folder)
    tracker = Tracker()
    if experiment_id is None:
        # what was trained from another model, or by a method that has changed since, is of no use
        owner = f'{work.run.id} {start.artifact_id or "pretrained"} {method.digest}'
        iteration = tracker.begin(work.task.account_id, method.name, batch_id, owner)
    else:
        iteration = tracker.iteration(experiment_id, method.name, batch_id)
    before = _embed(method, material, start.file or method.model, material.validation)
    return Setting(work, method, start, material, iteration, before)


def seed_of(method: Method) -> int:
    return int(method.fit.get('seed', 0))


def train(setting: Setting, candidate: Candidate) -> Result:
    """Train with these parameters, or go on where a lost worker had come to. MLflow is told every epoch, and not yet of
    the end.

    :raises ValueError: nothing comes of it; the message says why.
    """
    method, iteration, work = setting.method, setting.iteration, setting.work
    title = f'Training {candidate.number} of {method.search.evaluations}'
    logger.info('%s: %s', title, candidate.parameters or 'the values of the method')
    run_id = iteration.start(candidate.parameters)
    watch = Watch(
        setting.material,
        method.items.modality,
        setting.before,
        method.metric,
        method.clicks.max_weight,
        lambda figures, epoch: iteration.log(run_id, figures, epoch),
        candidate.is_hopeless,
    )
    config = method.config(
        candidate.parameters,
        train_data=DATA,
        model_artifact=setting.start.artifact_id,
        run_name=work.run.name,
        callbacks=[watch, BestModelCheckpoint(monitor=PREFIX + method.metric, mode='max')],
    )
    folder = training_folder(setting, candidate)
    folder.mkdir(parents=True, exist_ok=True)
    with _broken_off(iteration, run_id):
        try:
            result = run_fit(
                config,
                lambda name, _: DatasetReader([setting.material.shard], name),
                folder,
                lambda progress: work.report(dataclasses.replace(progress, stage=f'{title}: {progress.stage}')),
                artifact=setting.start.file,
                resume=True,
                interruption=work.interruption,
                recovery=work.recovery,
            )
        except CallbackError as error:
            if not isinstance(error.__cause__, Pruned) or watch.best is None:
                raise
            logger.info('%s ends early: %s', title, error.__cause__)
            return Result(watch.best, None)
    assert watch.best is not None, 'there was an epoch'
    return Result(watch.best, result.artifact)


def training_folder(setting: Setting, candidate: Candidate) -> Path:
    """Where a training keeps its checkpoints and its model."""
    start = setting.start.artifact_id or 'pretrained'
    # a checkpoint of another method would be refused
    return setting.work.folder / TRIALS / f'{start}-{setting.method.digest}' / candidate.name[:16]


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


def _embed(method: Method, material: Material, model: str | Path, part: Judged) -> Embedded:
    # None: a GPU, where there is one
    device = 'cpu' if method.fit.get('device') == 'cpu' else None
    return embed_by_model(model, method.items.modality, part, material.items, device)
