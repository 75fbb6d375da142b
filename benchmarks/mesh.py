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
from sides import Result, comparison, judge, peak_memory, run_job, take_turns

LIMIT = 20
OPTIONS = {'point_cloud_size': 512, 'width': 0.25}
TEMPERATURE = 0.1
PER_CLASS = 4


def train_ours(target: Path, settings: dict[str, Any]) -> Result:
    import training
    from finetuner.data import CSVOptions

    cost: dict[str, float] = {}

    def report(progress: Any) -> None:
        if progress.stage == 'Training':
            cost.setdefault('prepared', time.perf_counter())
            cost.setdefault('start', time.process_time())
            cost.update(end=time.process_time(), peak=peak_memory())

    begin = time.perf_counter()
    result = training.fit(
        settings['model'],
        settings['train'],
        directory=target,
        report=report,
        csv_options=CSVOptions(is_labeled=True, header=True, point_cloud_size=OPTIONS['point_cloud_size']),
        loss='SupConLoss',
        loss_options={'temperature': TEMPERATURE},
        num_items_per_class=PER_CLASS,
        learning_rate=settings['learning_rate'],
        epochs=settings['epochs'],
        batch_size=settings['batch_size'],
        device='cpu',
    )
    return {
        'preparing': cost['prepared'] - begin - result.seconds['Loading the model'],
        'seconds': result.seconds['Training'],
        'cpu': cost['end'] - cost['start'],
        'peak': cost['peak'],
        'samples': result.samples,
        'model': str(result.artifact),
    }


def train_theirs(target: Path, settings: dict[str, Any]) -> Result:
    import torch
    from pytorch_metric_learning.losses import SupConLoss
    from pytorch_metric_learning.samplers import MPerClassSampler

    from finetuner.inference.point_encoder import PointEncoder

    torch.manual_seed(0)
    encoder = PointEncoder.load(settings['model']).train()
    start = time.perf_counter()
    paths, families = read(settings['train'])
    clouds = torch.from_numpy(np.stack(encoder.preprocessor.features(paths)))
    labels = torch.tensor([list(FAMILIES).index(family) for family in families])
    preparing = time.perf_counter() - start
    size = settings['batch_size']
    sampler = MPerClassSampler(labels, PER_CLASS, size, length_before_new_iter=len(labels) // size * size)
    loss, optimizer = SupConLoss(TEMPERATURE), torch.optim.Adam(encoder.parameters(), settings['learning_rate'])
    samples, start, cpu = 0, time.perf_counter(), time.process_time()
    for _ in range(settings['epochs']):
        for batch in torch.tensor(list(sampler)).split(size):
            optimizer.zero_grad()
            loss(encoder(points=clouds[batch]), labels[batch]).backward()
            optimizer.step()
            samples += len(batch)
    cost = {'preparing': preparing, 'seconds': time.perf_counter() - start, 'cpu': time.process_time() - cpu}
    return cost | {'samples': samples, 'peak': peak_memory(), 'model': str(encoder.save(target / 'model'))}


def evaluate(target: Path, settings: dict[str, Any]) -> Result:
    import torch

    from finetuner.artifact import open_artifact
    from finetuner.inference.backbones import load_encoder

    model = Path(settings['model'])
    encoder = load_encoder(open_artifact(model).model_directory('model') if model.suffix == '.zip' else model)

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
