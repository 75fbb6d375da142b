"""Trainings of a tiny encoder by the real loop, with any callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetuner.inference.encoder import Encoder
from training.callbacks import Callback
from training.callbacks.making import make_callbacks
from training.checkpoint import data_identity
from training.config import FitConfig
from training.data import Column, Examples, Store
from training.embed import FeatureEmbedder
from training.interruption import Interruption
from training.loop import set_up_optimizers, train
from training.losses.objective import Objective
from training.processes import make_accelerator, reproducible
from training.progress import Reporter
from training.rows import Rows, RowsWriter
from training.samplers import RandomSampler
from training.state import TrainingState
from training.step import Step
from training.task import Task

CLASSES, ITEMS, WIDTH = 4, 48, 6


class Preprocessor:
    modality, digest = 'tensor', 'none'

    def features(self, contents):
        return list(contents)

    def collate(self, rows):
        return {'tensor': np.stack(rows)}


class TinyEncoder(Encoder):
    """Two layers with dropout and running statistics between them; the first may be frozen."""

    modality = 'tensor'

    def __init__(self, freeze: bool = False):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 8), nn.Linear(8, 4)
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.2)
        self.first.requires_grad_(not freeze)
        self.forwards = 0

    preprocessor = property(lambda self: Preprocessor())
    input_names = property(lambda self: ['tensor'])
    backbone_dim = property(lambda self: 4)

    def pooled(self, tensor: Tensor) -> Tensor:
        self.forwards += 1
        return self.second(self.drop(torch.tanh(self.norm(self.first(tensor)))))

    def layer_groups(self):
        return [self.first, self.norm, self.second]

    def save(self, directory):
        raise AssertionError('it is not saved')


class Nearer(Objective):
    """Items are to be nearest to a learned point of their class."""

    shape = 'labelled'

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(CLASSES, 4))

    def forward(self, columns, labels=None, scores=None, keys=None):
        return nn.functional.cross_entropy(columns[0] @ self.points.T, labels)


class Titles:
    """What a data set says of its items to people."""

    def titles(self, column: int, rows: Any) -> list[str]:
        return [f'item {row} of column {column}' for row in rows]


def make_examples(
    folder: Path, seed: int = 0, items: int = ITEMS, name: str = 'items', noise: float = 1.0, columns: int = 1
) -> Examples:
    """Items of four classes, each around a point of its own."""
    chance = np.random.default_rng(seed)
    labels = np.arange(items, dtype=np.int32) % CLASSES
    points = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
    labels_of_all = np.repeat(labels, columns)
    vectors = (points[labels_of_all] + noise * chance.normal(size=(items * columns, WIDTH))).astype(np.float32)
    with RowsWriter(folder / name, np.float32) as writer:
        writer.append(list(vectors))
    keys = np.arange(items * columns, dtype=np.uint64) + np.uint64(1000 * seed)
    store = Store(Rows(folder / name), keys)
    made = tuple(Column('model', store, position, columns) for position in range(columns))
    return Examples(name, made, labels, [f'class {n}' for n in range(CLASSES)], None, Titles())


@dataclass
class Training:
    state: TrainingState
    callbacks: Callback
    run: Any

    @property
    def encoder(self) -> TinyEncoder:
        return self.state.task.encoders['model']

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.state.task.state_dict().items()}


@pytest.fixture
def make_training(tmp_path):
    """A training that is ready to run, in a folder of its own or in that of another."""

    def make(
        callbacks: Sequence[Any] = (),
        directory: str | Path = 'run',
        *,
        resume: bool = False,
        freeze: bool = False,
        evaluators: Any = (),
        val_losses: Sequence[float] | None = None,
        seed_of_data: int = 0,
        interruption: Interruption | None = None,
        **arguments: Any,
    ) -> Training:
        arguments = {'epochs': 3, 'batch_size': 8, 'learning_rate': 0.05, 'val_split': 0.1} | arguments
        config = FitConfig.from_arguments(model='m', train_data='t', device='cpu', callbacks=callbacks, **arguments)
        examples = make_examples(tmp_path / f'data-{seed_of_data}', seed_of_data)
        torch.manual_seed(config.seed)
        task = Task({'model': TinyEncoder(freeze)}, Nearer())
        accelerator = make_accelerator(config)
        embedders = {'model': FeatureEmbedder(task.encoders['model'], examples.columns[0].store.features)}
        step = Step(task, examples, embedders, accelerator)
        sampler = RandomSampler(len(examples), config.batch_size, config.seed)
        state = TrainingState(task, config, tmp_path / directory, Reporter())
        state.identity = {'data': data_identity(examples)}
        set_up_optimizers(state, sampler, accelerator)
        if callable(evaluators):
            evaluators = evaluators(task)
        everyone = make_callbacks(config.callbacks, evaluators, resume=resume)
        told = iter(val_losses) if val_losses is not None else None

        def validate() -> float:
            if told is not None:
                return next(told)
            task.eval()
            return float(np.mean([step.loss(rows).item() for rows in sampler.batches(0)]))

        def run() -> int:
            torch.manual_seed(config.seed)
            return train(state, step, sampler, [everyone], accelerator, validate, interruption)

        with reproducible(config.seed):
            return Training(state, everyone, run)

    return make


@pytest.fixture(autouse=True)
def one_thread():
    """One is enough for encoders as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
