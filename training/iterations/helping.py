"""Trainings of an iteration at the same time: the process of a task asks for helpers, which are runs of the queue.

A helper is claimed and launched like any other run, here, on another machine or on a Ray cluster. It finds for itself
what the training needs, and gives back the model as the artifact of its run. Nobody waits for the queue: a helper that
nobody has claimed when the process of the task has nothing else to do is withdrawn, and that process does its work.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from finetuner.excepts import DataError, NotFoundError, QuotaError, RegistryError, RunInProgressError
from registry import Registry, RunRecord
from registry.records import CREATED, FAILED, FINISHED, STARTED
from registry.tuning_tasks import EXPERIMENT, TASK
from training.callbacks.training_checkpoint import Recovery
from training.finishing import finish
from training.heartbeat import Heartbeat
from training.interruption import Interruption
from training.iterations.search import Candidate, ParameterSearch
from training.iterations.tracking import PRUNED, Iteration, Training
from training.iterations.training import Result, Setting, Start, Work, set_up, train
from training.iterations.watching import PREFIX
from training.methods import load_method
from training.progress import Progress

logger = logging.getLogger(__name__)

HELPS = 'helps'
"""In the config of a run: what it is a helper for, the fields of :class:`Order`."""
POLL = 1.0
"""Seconds between two looks at the helpers."""


@dataclass(frozen=True)
class Order:
    """What a helper is asked for.

    :param run: the id of the run that carries the task.
    :param experiment: of MLflow, that is the iteration.
    :param start: the artifact that the training begins with; None is the pretrained model.
    :param parameters: to train with.
    :param number: of the training.
    :param known: names of the trainings by which this one may be judged hopeless.
    :param digest: of what is learned from and compared by, and of the method: a helper that finds others is of no use.
    """

    run: str
    experiment: str
    start: str | None
    parameters: dict[str, Any]
    number: int
    known: list[str]
    digest: str


def find_helper(setting: Setting, candidate: Candidate) -> str | None:
    """The id of the run of a helper that a worker has asked for which was lost."""
    work, registry = setting.work, setting.work.registry
    try:
        run = registry.get_run(work.task.account_id, EXPERIMENT, _name(setting, candidate))
    except NotFoundError:
        return None
    registry.resume_run(run.id)  # if it had failed: so would what this process had begun begin again
    return run.id


def delegate(setting: Setting, candidate: Candidate, known: Sequence[str]) -> str | None:
    """Ask for a helper, and return the id of its run.

    :param known: as in :class:`Order`.
    :return: None if the account may have no more runs.
    """
    work, registry = setting.work, setting.work.registry
    setting.iteration.start(candidate.parameters)  # who comes after a lost worker begins with it
    order = Order(
        run=work.run.id,
        experiment=setting.iteration.id,
        start=setting.start.artifact_id,
        parameters=candidate.parameters,
        number=candidate.number,
        known=list(known),
        digest=_digest(setting),
    )
    try:
        run, _ = registry.create_run(
            work.task.account_id,
            EXPERIMENT,
            _name(setting, candidate),
            {**work.run.config, HELPS: asdict(order)},
            f'Training {candidate.number} of {setting.method.search.evaluations} of {work.run.name}',
            priority=work.run.priority,
        )
    except QuotaError:
        return None
    return run.id


def withdraw(setting: Setting, run_id: str) -> bool:
    """Take back what was asked for, if nobody works on it. One that its user has deleted is not wanted any more."""
    registry = setting.work.registry
    try:
        run = registry.get_run_by_id(run_id)
        if run.status == CREATED:
            registry.delete_run(run.account_id, EXPERIMENT, run.name)
    except (RunInProgressError, NotFoundError):  # somebody has begun, or has deleted it, just now
        return False
    return run.status == CREATED


class HelperFailed(Exception):
    """A helper has failed, perhaps for a reason of its machine."""


def collect(setting: Setting, run_id: str, candidate: Candidate) -> Result | Exception | None:
    """What a helper gives back; None while it is at work. Nothing came of it: :class:`HelperFailed`, or another
    exception where its user has ended it.
    """
    work, registry = setting.work, setting.work.registry
    try:
        run = registry.get_run_by_id(run_id)
    except NotFoundError:
        return ValueError(f'the helper for training {candidate.number} was deleted')
    if run.status in (CREATED, STARTED):
        return None
    if run.status == FAILED:
        return HelperFailed(f'{run.name}: {run.details}')
    if run.status == FINISHED:
        folder = work.folder / HELPS
        folder.mkdir(exist_ok=True)
        artifact = registry.artifact_file(registry.get_artifact(run.account_id, run.artifact_id))
        assert run.metrics is not None, 'it has finished'
        return Result(run.metrics['quality'], shutil.copyfile(artifact, folder / f'{work.run.name}.zip'))
    for training in setting.iteration.trainings():
        if training.name == candidate.name and training.outcome == PRUNED and training.quality is not None:
            return Result(training.quality, None)
    return ValueError(f'{run.name}: {run.details}')


def dismiss(setting: Setting, run_id: str) -> None:
    """Remove a helper that has done its work."""
    registry = setting.work.registry
    with suppress(RegistryError, RunInProgressError):  # then it stays in the list of runs
        run = registry.get_run_by_id(run_id)
        registry.delete_run(run.account_id, EXPERIMENT, run.name)


def await_helpers(setting: Setting, count: int) -> None:
    """Let some time pass."""
    setting.work.report(Progress(f'Waiting for {count} more training{"s" if count > 1 else ""}', 0, 0))
    time.sleep(POLL)


def help_out(
    registry: Registry, run: RunRecord, heartbeat: Heartbeat, interruption: Interruption, checkpoint_seconds: float
) -> None:
    """Do what a helper is asked for, as long as the task wants it.

    :param checkpoint_seconds: between two checkpoints at least.
    :raises ValueError: nothing comes of it; the message says why.
    """
    order = Order(**run.config[HELPS])
    if not heartbeat.serve(order.run):
        registry.cancel_run(run.id, 'The task has ended')
        return
    folder = registry.run_directory(run.id)
    work = Work(
        registry=registry,
        task=registry.tuning.get_task_by_id(run.config[TASK]),
        run=registry.get_run_by_id(order.run),
        folder=folder,
        report=heartbeat.report,
        recovery=Recovery(checkpoint_seconds, measured=lambda footprint: footprint.write(folder)),
        interruption=interruption,
    )
    assert work.task.batch_id is not None, 'the process of the task has named one'
    method, start = load_method(work.task.method), _start(registry, run, order.start)
    setting = set_up(work, method, work.task.batch_id, start, order.experiment)
    if _digest(setting) != order.digest:
        raise DataError(
            'the sessions of the batch, their items or the file of the method are not those that the task began with'
        )
    candidate = _candidate(setting, order)
    result = train(setting, candidate)
    if result.artifact is None:
        setting.iteration.end(setting.iteration.start(candidate.parameters), PRUNED, result.quality)
        shutil.rmtree(folder, ignore_errors=True)
        registry.cancel_run(run.id, 'Ended early: worse than half of the trainings before it')
    else:
        finish(registry, run.id, result.artifact, {'quality': result.quality}, {}, heartbeat.lease)
        shutil.rmtree(folder, ignore_errors=True)


def known_epochs(iteration: Iteration, metric: str, trainings: Sequence[Training]) -> dict[str, dict[int, float]]:
    """By name of a training and epoch, the main metric."""
    return {training.name: iteration.history(training.run_id, PREFIX + metric) for training in trainings}


def _name(setting: Setting, candidate: Candidate) -> str:
    """One that has learned from other data, or from another model, has another name."""
    told = f'{candidate.name} {setting.start.artifact_id} {_digest(setting)}'
    return f'{setting.work.run.name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}'


def _start(registry: Registry, run: RunRecord, artifact_id: str | None) -> Start:
    if artifact_id is None:
        return Start()
    return Start(artifact_id, registry.artifact_file(registry.get_artifact(run.account_id, artifact_id)))


def _digest(setting: Setting) -> str:
    told = f'{setting.material.digest} {setting.method.digest}'
    return hashlib.sha256(told.encode()).hexdigest()


def _candidate(setting: Setting, order: Order) -> Candidate:
    search = setting.method.search
    known = [training for training in setting.iteration.trainings() if training.name in order.known]
    epochs = known_epochs(setting.iteration, setting.method.metric, known)
    candidate = ParameterSearch(search, setting.seed, known, [order.parameters], epochs).ask()
    assert candidate is not None and candidate.parameters == order.parameters, 'what is to be tried first'
    return replace(candidate, number=order.number)
