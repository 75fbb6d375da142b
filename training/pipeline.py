"""A run from its config to its artifact, one stage after the other."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from finetuner.artifact.manifest import check_name
from finetuner.excepts import DataError
from finetuner.inference.clip import clip_logit_scale
from finetuner.inference.encoder import Encoder
from registry.shards import DatasetReader
from training.backbone import for_export, load_for_training
from training.batch_size import find_batch_size, measure_footprint
from training.callbacks.making import make_callbacks
from training.callbacks.training_checkpoint import Recovery, TrainingCheckpoint
from training.check import check_data
from training.checkpoint import data_identity
from training.config import FitConfig, check_memory
from training.data import Examples, open_examples, prepare
from training.embed import Embedder
from training.embedders import make_budgets, make_embedders
from training.evaluator import Corpora, Metrics, make_evaluators
from training.export import build_artifact, check_size
from training.freezing import check_trainable
from training.interruption import Interruption
from training.loop import set_up_optimizers, train
from training.losses import make_objective
from training.losses.margin_mse import MarginMSELoss
from training.processes import make_accelerator, reproducible, scratch
from training.progress import Progress, Reporter
from training.reduced import make_measure, sample_features
from training.run_folder import SCRATCH
from training.samplers import make_sampler
from training.state import TrainingState
from training.step import Step, has_batch_statistics
from training.task import Task
from training.validation import make_validation, split

logger = logging.getLogger(__name__)

OpenData = Callable[[str, Path], DatasetReader]


@dataclass(frozen=True)
class FitResult:
    """What came of a run.

    :param artifact: the zip.
    :param metrics: {'before': {name: value}, 'after': ...}; both empty without an evaluation.
    :param examples: {'before': {query: [nearest match, ...]}, 'after': ...}; both empty if not gathered. If they are,
        'relevant before' and 'relevant after' tell in the same way which of these matches are right.
    :param samples: how many examples were trained on, repetitions counted.
    :param seconds: wall time by stage.
    :param history: losses, learning rate and what callbacks measured, at the end of every epoch.
    """

    artifact: Path
    metrics: dict[str, Metrics]
    examples: dict[str, dict[str, list[Any]]]
    samples: int
    seconds: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds['Training']


def run_fit(
    config: FitConfig,
    open_data: OpenData,
    directory: Path,
    report: Callable[[Progress], None] | None = None,
    *,
    artifact: Path | None = None,
    resume: bool = False,
    interruption: Interruption | None = None,
    recovery: Recovery | None = None,
) -> FitResult:
    """Fine-tune a model as the config says.

    The same config, data and machine give the same weights: all seeds are set, and torch is told to be deterministic.

    :param open_data: opens a data set by the name that the config gives it, and may put files into the folder.
    :param directory: where the artifact and checkpoints go, and meanwhile the files that are needed on the way.
    :param report: is called with the progress, at most about twice a second.
    :param artifact: the zip or folder of `config.model_artifact`.
    :param resume: go on from the last checkpoint in `directory`, if there is one.
    :param interruption: lets SIGTERM end the process between two batches.
    :param recovery: have checkpoints written also where no callback asks for them.
    :raises ValueError: the model or the data cannot be used; the message says why.
    """
    reporter = Reporter(report)
    name = check_name('artifact', config.run_name or directory.name)
    accelerator = make_accelerator(config)
    work = directory / SCRATCH
    earlier = resumable(config, directory, resume, recovery)
    with reproducible(config.seed), scratch(work, accelerator):
        with reporter.stage('Loading the model'):
            encoders = load_for_training(config, artifact)
            for encoder in encoders.values():
                check_size(encoder.to(accelerator.device))
        if accelerator.num_processes > 1 and any(map(has_batch_statistics, encoders.values())):
            logger.warning('BatchNorm sees the share of each process: the result is not that of one process')
        check_trainable(Task(encoders, config.example_objective()))

        @functools.cache
        def reader_of(data: str) -> DatasetReader:
            folder = data_folder(data, work)
            with reporter.stage(f'Reading {data}'), accelerator.main_process_first():
                folder.mkdir(parents=True, exist_ok=True)
                return open_data(data, folder)

        @functools.cache
        def examples_of(data: str) -> Examples:
            return prepare_examples(data, reader_of(data), encoders, work, reporter, accelerator)

        @functools.cache
        def embedders_of(examples: Examples) -> Mapping[str, Embedder]:
            return make_embedders(config, examples, encoders, accelerator, reporter)

        check_data(config, reader_of(config.train_data))
        check_scores(config, reader_of(config.train_data))
        training_set = examples_of(config.train_data)
        check_views(training_set)
        eval_set = None if config.eval_data is None else examples_of(config.eval_data)
        rows, held_out = split(training_set, config.val_split, config.seed)
        logger.info('Training data: %s', describe(training_set, rows))

        task = make_task(config, encoders, training_set).to(accelerator.device)
        embedders = embedders_of(training_set)
        # what an earlier process found: that of now depends on how much memory is free
        budgets = earlier.get('budgets') or make_budgets(config, encoders, embedders, accelerator.device)
        batch_size = config.batch_size or earlier.get('batch_size')
        batch_size = batch_size or find_batch_size(task, training_set, embedders, accelerator.device)
        sampler = make_sampler(config, rows, training_set, batch_size)
        check_memory(task.objective, sampler.largest * len(training_set.columns))
        step = Step(task, training_set, embedders, accelerator, budgets)
        validate = make_validation(config, step, held_out, eval_set, batch_size, embedders_of)
        corpora = Corpora(encoders, embedders_of, work, accelerator.device, reporter)
        evaluators = make_evaluators(config, examples_of, corpora)

        state = TrainingState(task, config, directory, reporter, is_main=accelerator.is_main_process)
        state.scaler = accelerator.scaler
        state.identity = {'data': data_identity(training_set), 'batch_size': batch_size, 'budgets': budgets}
        state.identity['evaluation data'] = [data_identity(examples_of(name)) for name in config.data[1:]]
        set_up_optimizers(state, sampler, accelerator)
        everyone = make_callbacks(config.callbacks, evaluators, resume=resume, is_main=state.is_main, recovery=recovery)
        if recovery is not None and state.is_main:
            recovery.measured(measure_footprint(task, training_set, embedders, batch_size, accelerator.device))
        with reporter.stage('Training'):
            samples = train(state, step, sampler, [everyone], accelerator, validate, interruption)
        zipped = directory / f'{name}.zip'
        if state.is_main:
            with reporter.stage('Building the artifact'):
                settings = config.model_dump(mode='json') | {'batch_size': batch_size}
                aside = build_artifact(
                    for_export(task),
                    name=name,
                    config=settings,
                    metrics=everyone.metrics,
                    target=work / zipped.name,
                    onnx_precision=config.onnx_precision,
                    onnx_min_cosine=config.onnx_min_cosine,
                    samples=sample_features(training_set),
                    measure=make_measure(config, examples_of, task, work, reporter),
                )
                aside.replace(zipped)
            logger.info('Artifact %s of %.1f MB', zipped, zipped.stat().st_size / 1e6)
        accelerator.wait_for_everyone()
    return FitResult(zipped, everyone.metrics, everyone.examples, samples, reporter.seconds, state.history)


def make_task(config: FitConfig, encoders: Mapping[str, Encoder], examples: Examples) -> Task:
    """Encoders and objective together; the objective knows the width of the embeddings and the number of classes."""
    options, scale = config.loss_options or {}, clip_logit_scale(encoders) if len(encoders) > 1 else None
    if scale is not None and scale.bias is not None:
        options = from_model(config.loss, options, {'scale': math.exp(scale.logarithm), 'bias': scale.bias})
    objective = make_objective(
        config.loss,
        options,
        num_classes=examples.class_count,
        embedding_size=next(iter(encoders.values())).dim,
        miner=config.miner,
        miner_options=config.miner_options,
        logit_scale=None if scale is None else scale.logarithm,
    )
    return Task(encoders, objective)


def from_model(loss: str, options: Mapping[str, Any], values: Mapping[str, float]) -> dict[str, Any]:
    """The options of a loss, where those of every SigLIPLoss in it are by default the model's own."""
    if loss == 'SigLIPLoss':
        return {**values, **options}
    if loss == 'MatryoshkaLoss' and 'loss' in options:
        return {**options, 'loss_options': from_model(options['loss'], options.get('loss_options') or {}, values)}
    if loss == 'MultipleLosses':
        parts: list[Mapping[str, Any]]
        parts = [{'loss': part} if isinstance(part, str) else part for part in options.get('losses', ())]
        filled = [
            {**part, 'loss_options': from_model(part['loss'], part.get('loss_options') or {}, values)} for part in parts
        ]
        return {**options, 'losses': filled}
    return dict(options)


def resumable(config: FitConfig, directory: Path, resume: bool, recovery: Recovery | None) -> dict[str, Any]:
    """What the training depends on beside its config, by the checkpoint that it goes on from; empty if there is none.

    :raises ValueError: there is a checkpoint, and it is of another config, or it is not to be gone on from.
    """
    keeps = recovery is not None or has_checkpoints(config)
    return TrainingCheckpoint.check(directory, config, resume) if keeps else {}


def has_checkpoints(config: FitConfig) -> bool:
    return any(callback.name == TrainingCheckpoint.__name__ for callback in config.callbacks or ())


def check_views(examples: Examples) -> None:
    """:raises DataError: both contents of every pair are equal, and equal contents are embedded once."""
    columns = examples.columns
    if len(columns) == 2 and columns[0].encoder == columns[1].encoder:
        rows = np.arange(len(examples))
        one, other = (column.store.keys[column.items(rows)] for column in columns)
        if np.array_equal(one, other):
            raise DataError(
                f'both contents of every pair of {examples.name} are equal, and an item is its own positive anyway: '
                'give pairs of two different ones'
            )


def check_scores(config: FitConfig, data: DatasetReader) -> None:
    """:raises DataError: a MarginMSELoss is to learn from triplets without scores."""
    needed = any(isinstance(part, MarginMSELoss) for part in config.example_objective().modules())
    if needed and not data.scored:
        raise DataError(f'MarginMSELoss learns from the scores of triplets, and the data set {data.name!r} has none')


def prepare_examples(
    data: str,
    reader: DatasetReader,
    encoders: Mapping[str, Encoder],
    work: Path,
    report: Reporter,
    accelerator: Accelerator,
) -> Examples:
    folder = data_folder(data, work)
    with report.stage(f'Preparing {data}'):
        if accelerator.is_main_process:
            prepare(reader, encoders, folder, report)
        accelerator.wait_for_everyone()
        return open_examples(reader, folder)


def data_folder(data: str, work: Path) -> Path:
    return work / 'data' / hashlib.sha256(data.encode()).hexdigest()[:16]


def describe(examples: Examples, rows: np.ndarray) -> str:
    kind = {1: 'items', 2: 'pairs', 3: 'triplets'}[len(examples.columns)]
    groups = f' of {examples.class_count} {"classes" if examples.classes else "groups"}' * (examples.labels is not None)
    held_out = f', {len(examples) - len(rows)} more are held out' * (len(examples) > len(rows))
    return f'{len(rows)} {kind}{groups}{held_out}'
