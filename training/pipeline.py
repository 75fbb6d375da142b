"""A run from its config to its artifact, one stage after the other."""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from finetuner.artifact.manifest import check_name
from finetuner.inference.text_encoder import TextEncoder
from training.config import DEFAULT_BATCH_SIZE, FitConfig
from training.data import SCRATCH, LabelledTexts, TokenisedTexts, tokenise
from training.evaluator import Evaluator, Examples, Metrics
from training.export import build_artifact, check_size
from training.loop import MetricLearning, train
from training.losses import has_class_weights, make_loss, make_miner
from training.progress import Progress, Reporter
from training.samplers import make_sampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What came of a run.

    :param artifact: the zip.
    :param metrics: {'before': {name: value}, 'after': ...}; both empty without an evaluation.
    :param examples: {'before': {query: [nearest match, ...]}, 'after': ...}; both empty if not gathered.
    :param samples: how many samples were trained on, repetitions counted.
    :param seconds: wall time by stage.
    """

    artifact: Path
    metrics: dict[str, Metrics]
    examples: dict[str, Examples]
    samples: int
    seconds: dict[str, float]

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds['Training']


def run_fit(
    config: FitConfig,
    open_texts: Callable[[str, Path], LabelledTexts],
    directory: Path,
    report: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Fine-tune a model as the config says.

    The same config, data and machine give the same weights: all seeds are set, and torch is told to be deterministic.

    :param open_texts: opens a data set by the name that the config gives it, and may put files into the folder.
    :param directory: where the artifact goes, and meanwhile the files that are needed on the way.
    :param report: is called with the progress, at most about twice a second.
    :raises ValueError: the model or the data cannot be used; the message says why.
    """
    reporter = Reporter(report)
    work = directory / SCRATCH
    name = check_name('artifact', config.run_name or directory.name)
    metrics: dict[str, Metrics] = {'before': {}, 'after': {}}
    examples: dict[str, Examples] = {'before': {}, 'after': {}}
    with reproducible(config.seed), scratch(work):
        accelerator = make_accelerator(config)
        with reporter.stage('Loading the model'):
            pooling = (config.model_options or {}).get('pooling')
            encoder = TextEncoder.load(config.model, pooling, config.max_length).to(accelerator.device)
            check_size(encoder)

        @functools.cache
        def prepare(data: str) -> TokenisedTexts:
            folder = work / f'data-{prepare.cache_info().misses}'
            with reporter.stage(f'Preparing {data}'):
                texts = open_texts(data, folder)
                return tokenise(texts, encoder.tokenizer, encoder.max_length, folder, reporter)

        texts = prepare(config.train_data)
        logger.info('Training data: %d texts of %d classes', len(texts), len(texts.classes))
        evaluator = None
        if wanted := config.evaluation:
            query, index = prepare(wanted.query_data), prepare(wanted.index_data or wanted.query_data)
            evaluator = Evaluator(wanted, query, index, work, accelerator.device, reporter)

        sampler = make_sampler(
            config.sampler,
            texts.labels,
            class_weights=has_class_weights(config.loss),
            batch_size=config.batch_size or DEFAULT_BATCH_SIZE,
            num_items_per_class=config.num_items_per_class,
            seed=config.seed,
        )
        loss = make_loss(config.loss, config.loss_options, num_classes=len(texts.classes), embedding_size=encoder.dim)
        task = MetricLearning(encoder, loss, make_miner(config.miner, config.miner_options))

        if evaluator:
            with reporter.stage('Evaluating before'):
                metrics['before'], examples['before'] = evaluator(encoder)
        with reporter.stage('Training'):
            samples = train(task, texts, sampler, config, accelerator, reporter)
        if evaluator:
            with reporter.stage('Evaluating after'):
                metrics['after'], examples['after'] = evaluator(encoder)
        for key, after in metrics['after'].items():
            before = metrics['before'][key]
            logger.info("Metric: '%s' before fine-tuning: %.5f after fine-tuning: %.5f", key, before, after)
        with reporter.stage('Building the artifact'):
            settings, target = config.model_dump(mode='json'), work / f'{name}.zip'
            try:
                build_artifact(encoder.cpu().eval(), name=name, config=settings, metrics=metrics, target=target)
            except Exception:
                logger.error('The trained model is kept in %s', encoder.save(directory / 'model'))
                raise
            artifact = target.replace(directory / target.name)
    logger.info('Artifact %s of %.1f MB', artifact, artifact.stat().st_size / 1e6)
    return FitResult(artifact, metrics, examples, samples, reporter.seconds)


def make_accelerator(config: FitConfig) -> Accelerator:
    """The device and precision that the config asks for; without a GPU 'cuda' means the CPU.

    :raises ValueError: the device cannot compute in this precision.
    """
    cpu = config.device == 'cpu' or not torch.cuda.is_available()
    if cpu and config.device != 'cpu':
        logger.warning('There is no GPU: training on the CPU')
    if cpu and config.precision == 'fp16':
        raise ValueError("precision 'fp16' needs a GPU: use 'bf16' or 'fp32'")
    if not cpu and ':' in config.device:
        torch.cuda.set_device(config.device)
    AcceleratorState._reset_state(reset_partial_state=True)  # a process may fit more than once
    return Accelerator(cpu=cpu, mixed_precision='no' if config.precision == 'fp32' else config.precision)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed Python, numpy and torch, and have torch choose algorithms that give the same bits every time."""
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    set_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def scratch(directory: Path) -> Iterator[None]:
    """A new folder that is gone afterwards, however it ends."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
