"""Losses of a large batch, ours against pytorch-metric-learning: `python benchmarks/metric_losses.py`.

For every loss and number of items per class, the value and the gradient of one batch of random embeddings, in both.
Each side runs in a process of its own, within a limit of memory and of CPU time, and the two take turns; the
times are medians of CPU time. The peaks are what a process grew by. The difference is the largest of the two gradients,
in parts of the largest number in them.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

LOSSES = (
    'TripletMarginLoss',
    'NTXentLoss',
    'ContrastiveLoss',
    'SupConLoss',
    'MultiSimilarityLoss',
    'CircleLoss',
    'LiftedStructureLoss',
    'TupletMarginLoss',
    'AngularLoss',
    'MarginLoss',
    'PNPLoss',
    'HistogramLoss',
    'SignalToNoiseRatioContrastiveLoss',
    'ThresholdConsistentMarginLoss',
)
LATE = 'too long'
# seconds of one side, after which it takes no more turns
ENOUGH = 3.0


def work(side: str, batch: int, dim: int, memory: float, limit: float, gradient: str) -> None:
    """A value and a gradient for every [loss, items per class] that comes in; seconds and the growth in MiB go out."""
    import torch
    from pytorch_metric_learning import losses

    from training.losses import make_objective

    torch.set_num_threads(1)
    embeddings = torch.randn(batch, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    most = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    print('ready', flush=True)
    for line in sys.stdin:
        name, per_class = json.loads(line)
        labels = torch.arange(batch) // per_class
        objective = make_objective(name, num_classes=batch // per_class, embedding_size=dim)
        library = getattr(losses, name)()
        embeddings.grad = None
        ctypes.CDLL('libc.so.6').malloc_trim(0)  # what earlier losses left free would hide the growth
        before = peak(reset=True)
        signal.setitimer(signal.ITIMER_PROF, limit)  # ends this process after as much CPU time
        start = time.process_time()  # of one thread, so that other work on the machine does not count
        try:
            value = objective([embeddings], labels) if side == 'ours' else library(embeddings, labels)
            value.backward()
        except (RuntimeError, MemoryError) as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps({'failure': 'out of memory' if 'alloc' in str(error) else str(error)}), flush=True)
            continue
        seconds = time.process_time() - start
        signal.setitimer(signal.ITIMER_PROF, 0)
        torch.save(embeddings.grad, gradient)
        print(json.dumps({'seconds': seconds, 'peak': peak() - before}), flush=True)


def peak(reset: bool = False) -> float:
    """The most memory that this process has had, in MiB; since now, if reset."""
    if reset:
        Path('/proc/self/clear_refs').write_text('5')
    status = Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) / 1024


class Side:
    """One of the two, in a process of its own."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.start()

    def start(self) -> None:
        command = [sys.executable, '-W', 'ignore', __file__, '--job', json.dumps(self.arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.stdout.readline()

    def turn(self, loss: str, per_class: int) -> dict[str, Any]:
        """The seconds and the growth of one batch, or {'failure': why there are none}."""
        self.stdin.write(json.dumps([loss, per_class]) + '\n')
        self.stdin.flush()
        line = self.stdout.readline()
        if line:
            return dict(json.loads(line))
        late = self.process.wait() == -signal.SIGPROF
        self.end()
        self.start()
        return {'failure': LATE if late else 'out of memory'}

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass
class Figures:
    """What the turns of one side gave."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    failure: str = ''

    def add(self, side: Side, loss: str, per_class: int) -> None:
        if self.failure or sum(self.seconds) > ENOUGH:
            return
        answer = side.turn(loss, per_class)
        self.failure = answer.get('failure', '')
        if not self.failure:
            self.seconds.append(answer['seconds'])
            self.peaks.append(answer['peak'])

    @property
    def milliseconds(self) -> float:
        return 1000 * statistics.median(self.seconds[1:] or self.seconds)  # the first turn warms up

    def __str__(self) -> str:
        return self.failure or f'{self.milliseconds:,.1f}'


def difference(ours: str, theirs: str) -> float:
    import torch

    one, two = (torch.load(path, weights_only=True) for path in (ours, theirs))
    return float((one - two).abs().max() / two.abs().max())


def main(
    losses: Annotated[list[str] | None, typer.Argument(help='Which, default those with a form of their own.')] = None,
    batch: int = 512,
    dim: int = 128,
    per_class: Annotated[list[int] | None, typer.Option(help='Items of a class, default 4 and 16.')] = None,
    rounds: Annotated[int, typer.Option(help='Times that the sides take turns.')] = 5,
    memory: Annotated[float, typer.Option(help='GiB that a process may use.')] = 8.0,
    limit: Annotated[float, typer.Option(help='CPU seconds that one batch may take.')] = 4.0,
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure both, and print what came of it."""
    if job is not None:
        work(*json.loads(job))
        return
    title = f'Batches of {batch}, {dim} dimensions, 1 thread, at most {memory:g} GiB and {limit:g} s'
    table = Table(title=title, title_justify='left')
    columns = ('loss', 'per class', 'ours ms', 'library ms', 'ratio', 'ours MiB', 'library MiB', 'difference')
    for column in columns:
        table.add_column(column, justify='left' if column == 'loss' else 'right', no_wrap=True)
    console = Console(width=max(Console().width, 124))
    with tempfile.TemporaryDirectory() as folder, console.status('') as status:
        paths = [f'{folder}/{side}' for side in ('ours', 'library')]
        sides = [Side(side, batch, dim, memory, limit, f'{folder}/{side}') for side in ('ours', 'library')]
        for loss in losses or LOSSES:
            for number in per_class or (4, 16):
                status.update(f'{loss}, {number} per class')
                ours, theirs = Figures(), Figures()
                for _ in range(rounds + 1):
                    ours.add(sides[0], loss, number)
                    theirs.add(sides[1], loss, number)
                both = not ours.failure and not theirs.failure
                ratio = f'{theirs.milliseconds / ours.milliseconds:.1f}' if both else ''
                if theirs.failure == LATE and not ours.failure:
                    ratio = f'> {1000 * limit / ours.milliseconds:.0f}'
                table.add_row(
                    loss,
                    str(number),
                    str(ours),
                    str(theirs),
                    ratio,
                    f'{max(ours.peaks):,.0f}' if ours.peaks else '',
                    f'{max(theirs.peaks):,.0f}' if theirs.peaks else '',
                    f'{difference(*paths):.0e}' if both else '',
                )
            table.add_section()
        for side in sides:
            side.end()
    console.print(table)


if __name__ == '__main__':
    typer.run(main)
