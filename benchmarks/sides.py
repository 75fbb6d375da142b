"""What the two sides of a comparison share: a process of their own for each, and the table at the end."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

Result = dict[str, Any]


def peak_memory() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_job(script: str, job: str, target: Path, settings: Mapping[str, Any]) -> Result:
    """Run `script --job JOB` in a process of its own; its last line is the result as JSON."""
    target.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, script, '--job', job, '--target', str(target), '--settings', json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'{job} failed:\n{done.stderr}')
    return dict(json.loads(done.stdout.splitlines()[-1]))


def fit(model: str, data: Any, target: Path, settings: Mapping[str, Any], **options: Any) -> Result:
    """Train with `training.fit` on the CPU, and tell what it cost; the export is no part of that.

    :param settings: of them `epochs`, `batch_size` and `learning_rate`.
    :param options: further arguments of `training.fit`.
    """
    import training
    from training.callbacks import Callback

    cost: dict[str, float] = {}

    class Meter(Callback):
        def on_fit_begin(self, state: Any) -> None:
            cost.update(seconds=-time.perf_counter(), cpu=-time.process_time())

        def on_fit_end(self, state: Any) -> None:
            cost['seconds'] += time.perf_counter()
            cost['cpu'] += time.process_time()
            cost['peak'] = peak_memory()

    same = {name: settings[name] for name in ('epochs', 'batch_size', 'learning_rate')}
    result = training.fit(model, data, directory=target, callbacks=[Meter()], device='cpu', **same, **options)
    return cost | {'preparing': preparations(result), 'samples': result.samples, 'model': str(result.artifact)}


def preparations(result: Any) -> float:
    """Seconds of a `FitResult` before the first batch that depend on the data."""
    stages = ('Reading', 'Preparing', 'Caching')
    return sum(seconds for stage, seconds in result.seconds.items() if stage.startswith(stages))


def train_plainly(
    encoder: Any, argument: str, features: Any, names: Sequence[str], loss: Any, optimizer: Any, settings: Result
) -> Result:
    """The loop that one writes with pytorch-metric-learning: all in memory, one step after the other.

    :param argument: of the encoder's forward that takes the features.
    :param features: of all items, float32 [N, ...].
    :param names: their classes.
    :param settings: of them `epochs`, `batch_size` and `per_class`.
    """
    import torch
    from pytorch_metric_learning.samplers import MPerClassSampler

    labels, size = torch.from_numpy(np.unique(names, return_inverse=True)[1]), settings['batch_size']
    sampler = MPerClassSampler(labels, settings['per_class'], size, length_before_new_iter=len(labels) // size * size)
    samples, start, cpu = 0, time.perf_counter(), time.process_time()
    for _ in range(settings['epochs']):
        for batch in torch.tensor(list(sampler)).split(size):
            optimizer.zero_grad()
            loss(encoder(**{argument: features[batch]}), labels[batch]).backward()
            optimizer.step()
            samples += len(batch)
    cost = {'seconds': time.perf_counter() - start, 'cpu': time.process_time() - cpu}
    return cost | {'samples': samples, 'peak': peak_memory()}


def load_trained(model: str) -> Any:
    """The encoder of an artifact or of a model directory, in evaluation."""
    from finetuner.artifact import open_artifact
    from finetuner.inference.backbones import load_encoder

    is_artifact = model.endswith('.zip')
    return load_encoder(open_artifact(model).model_directory('model') if is_artifact else model)


def take_turns(
    script: str, sides: tuple[str, str], target: Path, settings: Mapping[str, Any], rounds: int
) -> list[Result]:
    """Run both sides, `rounds` times in turns; what the first round learned, at the cost of the fastest."""
    results: dict[str, Result] = {}
    for turn in range(rounds):
        for side in sides:
            done = run_job(script, side, target / f'{side}-{turn}', settings)
            first = results.setdefault(side, done)
            for cost in ('preparing', 'seconds', 'cpu', 'peak'):
                first[cost] = min(first[cost], done[cost])
    return [results[side] for side in sides]


def judge(embed: Any, queries: Any, index: Any, limit: int) -> dict[str, float]:
    """Retrieval metrics: queries and index are pairs of contents and labels, `embed` gives float32 [N, D]."""
    from training.evaluation import evaluate

    numbers = {label: number for number, label in enumerate(dict.fromkeys([*index[1], *queries[1]]))}
    labels = [np.array([numbers[label] for label in side[1]]) for side in (queries, index)]
    metrics = evaluate(embed(queries[0]), labels[0], embed(index[0]), labels[1], limit=limit)
    return {name: float(value) for name, value in metrics.items()}


def comparison(title: str, before: Mapping[str, float], ours: Result, theirs: Result, peer: str, limit: int) -> Table:
    """Metrics before and after, and what both sides cost."""
    table = Table(title=title, title_justify='left')
    for column in ('', 'before', 'ours', peer, 'ratio'):
        table.add_column(column, justify='right' if column else 'left', no_wrap=True)
    for name, value in before.items():
        one, two = ours['metrics'][name], theirs['metrics'][name]
        ratio = f'{one / two:.3f}' if two else ''
        table.add_row(name.replace('_k', f'_{limit}'), f'{value:.4f}', f'{one:.4f}', f'{two:.4f}', ratio)
    table.add_section()
    for name, one, two in [
        ('seconds of preparing', ours['preparing'], theirs['preparing']),
        ('seconds of training', ours['seconds'], theirs['seconds']),
        ('CPU seconds of training', ours['cpu'], theirs['cpu']),
        ('samples', ours['samples'], theirs['samples']),
        ('samples/s', ours['samples'] / ours['seconds'], theirs['samples'] / theirs['seconds']),
        ('peak MiB', ours['peak'], theirs['peak']),
    ]:
        table.add_row(name, '', f'{one:,.1f}', f'{two:,.1f}', f'{one / two:.2f}' if two else '')
    return table
