"""Training PointNet++ on meshes, ours against a plain loop with pytorch-metric-learning: `python benchmarks/mesh.py`.

The meshes are generated (benchmarks/shapes.py): ten families of shapes of random proportions, slanted and dented. Both
sides start from the same random weights of the same PointNet++ (a quarter of the paper's width, clouds of 512 points)
and learn with SupConLoss, Adam, the same learning rate and four items of a class in a batch. The peer keeps all clouds
in memory and calls the loss of pytorch-metric-learning. Each trains in a process of its own, so that the peak of its
memory is its own, and one evaluation judges both: the test meshes search the training meshes. No pretrained weights are
public in a safe format, so `before` are random weights.
"""

from __future__ import annotations

import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from shapes import FAMILIES, write_shapes
from sides import Result, comparison, fit, judge, load_trained, run_job, take_turns, train_plainly

LIMIT = 20
OPTIONS = {'point_cloud_size': 512, 'width': 0.25}
TEMPERATURE = 0.1
PER_CLASS = 4


def train_ours(target: Path, settings: dict[str, Any]) -> Result:
    from finetuner.data import CSVOptions

    return fit(
        settings['model'],
        settings['train'],
        target,
        settings,
        csv_options=CSVOptions(is_labeled=True, header=True, point_cloud_size=OPTIONS['point_cloud_size']),
        loss='SupConLoss',
        loss_options={'temperature': TEMPERATURE},
        num_items_per_class=settings['per_class'],
    )


def train_theirs(target: Path, settings: dict[str, Any]) -> Result:
    import torch
    from pytorch_metric_learning.losses import SupConLoss

    from finetuner.inference.point_encoder import PointEncoder

    torch.manual_seed(0)
    encoder = PointEncoder.load(settings['model']).train()
    start = time.perf_counter()
    paths, families = read(settings['train'])
    clouds = torch.from_numpy(np.stack(encoder.preprocessor.features(paths)))
    preparing = time.perf_counter() - start
    optimizer = torch.optim.Adam(encoder.parameters(), settings['learning_rate'])
    done = train_plainly(encoder, 'points', clouds, families, SupConLoss(TEMPERATURE), optimizer, settings)
    return done | {'preparing': preparing, 'model': str(encoder.save(target / 'model'))}


def evaluate(target: Path, settings: dict[str, Any]) -> Result:
    import torch

    encoder = load_trained(settings['model'])

    @torch.inference_mode()
    def embed(paths: list[str]) -> np.ndarray:
        clouds = torch.from_numpy(np.stack(encoder.preprocessor.features(paths)))
        return torch.cat([encoder(points=part) for part in clouds.split(32)]).numpy()

    return {'metrics': judge(embed, read(settings['test']), read(settings['train']), LIMIT)}


def read(table: str) -> tuple[list[str], list[str]]:
    """Paths and families."""
    with Path(table).open(newline='') as file:
        rows = list(csv.reader(file))[1:]
    return [path for path, _ in rows], [family for _, family in rows]


JOBS = {'ours': train_ours, 'pytorch-metric-learning': train_theirs, 'evaluate': evaluate}


def main(
    epochs: int = 8,
    batch_size: int = 40,
    learning_rate: float = 1e-3,
    train: Annotated[int, typer.Option(help='Training meshes of each family.')] = 40,
    test: Annotated[int, typer.Option(help='Test meshes of each family.')] = 10,
    rounds: Annotated[int, typer.Option(help='Times that the sides take turns; the fastest of each counts.')] = 1,
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
    target: Annotated[Path, typer.Option(hidden=True)] = Path(),
    settings: Annotated[str, typer.Option(hidden=True)] = '{}',
) -> None:
    """Train with ours and with pytorch-metric-learning, and print what came of it."""
    if job is not None:
        print(json.dumps(JOBS[job](target, json.loads(settings))))
        return
    import torch

    from finetuner.inference.point_encoder import PointEncoder

    console = Console()
    with tempfile.TemporaryDirectory() as folder, console.status('Writing meshes') as status:
        work = Path(folder)
        torch.manual_seed(0)
        options = {
            'model': str(PointEncoder(**OPTIONS).save(work / 'start')),
            'train': str(write_shapes(work / 'train', train, seed=1)),
            'test': str(write_shapes(work / 'test', test, seed=2)),
            'epochs': epochs,
            'batch_size': batch_size,
            'learning_rate': learning_rate,
            'per_class': PER_CLASS,
        }
        status.update('Evaluating the model as it is')
        before = run_job(__file__, 'evaluate', work / 'before', options)['metrics']
        status.update('Training')
        sides = take_turns(__file__, ('ours', 'pytorch-metric-learning'), work, options, rounds)
        status.update('Evaluating')
        for side in sides:
            side |= run_job(__file__, 'evaluate', work / 'after', options | {'model': side['model']})
    title = f'{len(FAMILIES)} families of meshes, {len(FAMILIES) * train} to train on, {epochs} epochs'
    console.print(comparison(title, before, *sides, 'pytorch-metric-learning', LIMIT))


if __name__ == '__main__':
    typer.run(main)
