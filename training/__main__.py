"""`python -m training fit train.csv --eval-data test.csv`: fine-tune on this machine, without the service.

On several devices: `torchrun --nproc-per-node 2 -m training fit train.csv …`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import MofNCompleteColumn, TextColumn
from rich.table import Table

from finetuner.command_line import JSON, Freeze, complete_freeze, has_its_own, json_object, parse_freeze
from finetuner.console import console, examples_table, make_progress, metrics_table, progress_console, show_log

if TYPE_CHECKING:
    import training.progress

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@cli.callback()
def main() -> None:
    """Fine-tune embedding models on this machine, without the service."""


@cli.command()
def fit(
    train_data: Annotated[Path, typer.Argument(help='A CSV, JSONL or Parquet file.')],
    eval_data: Annotated[Path | None, typer.Option(help='Held-out data, which searches the training data.')] = None,
    model: Annotated[str, typer.Option(help='A model directory, a short name or a hub id.')] = 'all-minilm-l6-v2',
    directory: Annotated[Path, typer.Option(help='Where the artifact goes.')] = Path('artifacts'),
    run_name: Annotated[str | None, typer.Option(help='The name of the artifact.', show_default='of the CSV')] = None,
    epochs: int = 5,
    batch_size: Annotated[int | None, typer.Option(show_default='what the device has room for')] = None,
    learning_rate: Annotated[float | None, typer.Option(show_default='chosen')] = None,
    loss: Annotated[str, typer.Option(help='A loss, see docs/training.md.')] = 'TripletMarginLoss',
    loss_options: JSON = None,
    miner: Annotated[str | None, typer.Option(help='A miner of pytorch-metric-learning.', show_default=False)] = None,
    miner_options: JSON = None,
    num_items_per_class: Annotated[int, typer.Option(help='Of a batch.')] = 4,
    freeze: Freeze = None,
    output_dim: Annotated[int | None, typer.Option(help='Add a projection head.', show_default=False)] = None,
    time_limit: Annotated[float | None, typer.Option(help='Seconds of training.', show_default=False)] = None,
    resume: Annotated[bool, typer.Option('--resume', help='Go on from the last checkpoint in the directory.')] = False,
    device: Annotated[str, typer.Option(help='cpu, cuda or cuda:N; cuda is the CPU where there is no GPU.')] = 'cuda',
    seed: int = 0,
    csv_options: JSON = None,
    options: Annotated[
        str | None,
        typer.Option(help='A JSON object of further arguments of finetuner.fit.', show_default=False),
    ] = None,
) -> None:
    """Fine-tune MODEL on TRAIN_DATA and write an artifact that can be served."""
    arguments: dict[str, Any] = {
        'run_name': run_name or re.sub(r'[^A-Za-z0-9._-]+', '-', train_data.stem).strip('.-_') or 'run',
        'epochs': epochs,
        'batch_size': batch_size,
        'learning_rate': learning_rate,
        'loss': loss,
        'loss_options': json_object('loss-options', loss_options),
        'miner': miner,
        'miner_options': json_object('miner-options', miner_options),
        'num_items_per_class': num_items_per_class,
        'freeze': parse_freeze(freeze),
        'output_dim': output_dim,
        'time_limit': time_limit,
        'device': device,
        'seed': seed,
    }
    if csv_options is not None:
        arguments['csv_options'] = json_object('csv-options', csv_options)
    further = json_object('options', options) or {}
    if given := sorted(further.keys() & {'train_data', 'eval_data', 'model', 'directory', 'resume'}):
        raise has_its_own(given[0])
    if unknown := sorted(further.keys() & {'report', 'interruption'}):
        raise ValueError(f'--options: {unknown[0]!r} is no argument of finetuner.fit')
    arguments |= further
    from training.interruption import Interruption
    from training.local import fit as fit_here
    from training.processes import ending_together

    is_main = os.environ.get('RANK', '0') == '0'
    show_log(*(['training', 'finetuner.data'] if is_main else []))
    with make_progress(MofNCompleteColumn(), TextColumn('{task.fields[facts]}')) as bar:
        task = bar.add_task('Starting', total=None, facts='')

        def report(progress: training.progress.Progress) -> None:
            bar.update(task, description=escape(progress.title), facts=progress.facts)
            bar.update(task, completed=progress.step, total=progress.steps)

        interruption = Interruption().install()
        with ending_together(interruption):
            result = fit_here(
                model,
                train_data,
                eval_data,
                directory=directory,
                report=report if is_main else None,
                resume=resume,
                interruption=interruption,
                **arguments,
            )
    if not is_main:
        return
    if result.examples['after']:
        console.print(examples_table(result.examples, k=3))
    if result.metrics['after']:
        console.print(metrics_table(result.metrics, arguments))
    stages = Table('Stage', 'Seconds', title='Where the time went', title_justify='left')
    for stage, seconds in result.seconds.items():
        stages.add_row(escape(stage), f'{seconds:.1f}')
    console.print(stages)
    console.print(f'Trained on {result.samples} samples, {result.samples_per_second:.0f} a second.')
    console.print(f'Serve it with\n  finetuner serve {result.artifact}', soft_wrap=True, highlight=False)


def app() -> None:
    """The entry point. An error that the user can mend is one sentence, and exit code 1."""
    try:
        cli(complete_freeze(sys.argv[1:]), prog_name='python -m training')
    except (ValueError, FloatingPointError) as error:
        progress_console.print(f'[red]{escape(str(error))}[/]', soft_wrap=True, highlight=False)
        sys.exit(1)


if __name__ == '__main__':
    app()
