"""A fine-tuning task, carried by a run of the registry from its claim to its end."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

from finetuner.excepts import NotFoundError
from registry import Registry, RunRecord
from registry.promotions import AliasMovedError
from registry.records import TuningTask
from training.callbacks.training_checkpoint import Recovery
from training.finishing import finish
from training.heartbeat import Heartbeat
from training.interruption import Interruption
from training.iterations.helping import HELPS, help_out
from training.iterations.iteration import BEST, Outcome, iterate
from training.iterations.material import DIGEST, ITEMS, SHARD
from training.iterations.tidying import remove_lost
from training.iterations.tracking import PROMOTED, REFUSED
from training.iterations.training import TRIALS, Start, Work
from training.methods import load_method
from training.run_folder import remove_training

logger = logging.getLogger(__name__)


def carry(
    registry: Registry,
    run: RunRecord,
    task_id: str,
    heartbeat: Heartbeat,
    interruption: Interruption,
    checkpoint_seconds: float,
) -> None:
    """Do what a task asks for, or the part of it that the run is a helper for, and store what came of it.

    :param checkpoint_seconds: between two checkpoints at least.
    :raises ValueError: it cannot be done; the message says why.
    """
    if HELPS in run.config:
        help_out(registry, run, heartbeat, interruption, checkpoint_seconds)
        return
    task = registry.tuning.get_task_by_id(task_id)
    method = load_method(task.method)
    batch_id = _batch(registry, task)
    folder = registry.run_directory(run.id)
    alias = method.promoted_alias
    start = find_start(registry, task.account_id, alias)
    work = Work(
        registry=registry,
        task=task,
        run=run,
        folder=folder,
        report=heartbeat.report,
        recovery=Recovery(checkpoint_seconds, measured=lambda footprint: footprint.write(folder)),
        interruption=interruption,
    )
    outcome = iterate(work, method, batch_id, start)
    try:
        _finish(registry, run, outcome, heartbeat.lease, alias, start)
    except AliasMovedError as error:
        outcome = _refuse(outcome, str(error))
        _finish(registry, run, outcome, heartbeat.lease, alias, start)
    try:
        _conclude(outcome, task.account_id)
        remove_lost(registry, outcome.iteration.tracker)
    except Exception:  # what matters is stored
        logger.exception('MLflow could not be told of the end of the iteration')
    _tidy(folder)


def find_start(registry: Registry, account_id: str, alias: str) -> Start:
    """The model that the alias names now; the pretrained one of the method if it names none."""
    try:
        promotion = registry.get_promotion(account_id, alias)
    except NotFoundError:
        return Start()
    artifact = registry.get_artifact(account_id, promotion.artifact_id)
    return Start(artifact.id, registry.artifact_file(artifact))


def _batch(registry: Registry, task: TuningTask) -> str:
    """What the task learns from. If it names nothing, the batch that collects is released now: clicks that came while
    the task waited are in it."""
    if task.batch_id is not None:
        return task.batch_id
    batch = registry.clicks.release_batch(task.account_id, task.idempotency_key or task.id)
    registry.tuning.set_batch(task.id, batch.id)
    return batch.id


def _refuse(outcome: Outcome, sentence: str) -> Outcome:
    metrics = {**outcome.metrics, 'promoted': False}
    return dataclasses.replace(outcome, is_promoted=False, sentence=sentence, metrics=metrics)


def _finish(registry: Registry, run: RunRecord, outcome: Outcome, lease: str, alias: str, start: Start) -> None:
    """
    :raises AliasMovedError: the alias names another model than the one that this one was compared with.
    """
    details = f'Promoted to {alias}: {outcome.sentence}' if outcome.is_promoted else f'Not promoted: {outcome.sentence}'
    options = {'alias': alias, 'in_place_of': start.artifact_id} if outcome.is_promoted else {}
    finish(registry, run.id, outcome.artifact, outcome.metrics, {}, lease, details=details, **options)
    logger.info('%s', details)


def _tidy(folder: Path) -> None:
    for name in (TRIALS, ITEMS, BEST, HELPS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (SHARD, DIGEST):
        (folder / name).unlink(missing_ok=True)
    remove_training(folder)


def _conclude(outcome: Outcome, account_id: str) -> None:
    """Note in MLflow what became of an iteration, after the registry knows. With a model that was promoted, earlier
    iterations go; with one that was not, all stays for the next one to start from."""
    iteration = outcome.iteration
    iteration.conclude(PROMOTED if outcome.is_promoted else REFUSED)
    if outcome.is_promoted:
        iteration.tracker.remove_others(account_id, iteration.method, iteration.id)
