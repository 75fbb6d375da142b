"""What ONNX models of fewer bits are measured with: items of the training data, and the evaluations of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from finetuner.inference.encoder import Encoder
from training.callbacks.making import prefixes
from training.config import FitConfig
from training.data import Examples
from training.embed import item_costs
from training.evaluator import Corpora, Metrics, make_evaluators
from training.export import Measure
from training.parity import Run
from training.progress import Reporter
from training.rows import Rows
from training.task import Task

SAMPLES = 256


class RunEmbedder:
    """Embeds with anything that takes the inputs of an encoder."""

    def __init__(self, encoder: Encoder, features: Rows, run: Run):
        self.encoder, self.features, self.run = encoder, features, run

    def costs(self, items: np.ndarray) -> np.ndarray:
        return item_costs(self.encoder, self.features, items)

    def embed(self, items: np.ndarray, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(self.run(self.encoder.preprocessor.collate(self.features.take(items))))


def sample_features(examples: Examples) -> dict[str, list[np.ndarray]]:
    """Features of some items for every encoder, evenly spread over the data."""
    rows = np.unique(np.linspace(0, len(examples) - 1, SAMPLES).astype(np.int64))
    return {column.encoder: column.store.features.take(column.items(rows)) for column in examples.columns}


def make_measure(
    config: FitConfig, examples_of: Callable[[str], Examples], task: Task, work: Path, report: Reporter
) -> Measure:
    """Does what the run's evaluations do, with given ways to compute embeddings."""

    def measure(runs: Mapping[str, Run]) -> Metrics:
        def embedders(examples: Examples) -> dict[str, RunEmbedder]:
            return {
                column.encoder: RunEmbedder(task.by_name[column.encoder], column.store.features, runs[column.encoder])
                for column in examples.columns
            }

        corpora = Corpora(task.by_name, embedders, work, torch.device('cpu'), report)
        evaluators = make_evaluators(config, examples_of, corpora)
        return {
            f'{prefix}{name}': value
            for evaluator, prefix in zip(evaluators, prefixes(evaluators), strict=True)
            for name, value in evaluator(task, examples=False).metrics.items()
        }

    return measure
