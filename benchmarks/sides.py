"""What the two sides of a comparison share: a process of their own for each, and the table at the end."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
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
