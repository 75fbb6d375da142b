"""`python -m training fit train.csv --eval-data test.csv`: fine-tune on this machine, without the service."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import MofNCompleteColumn, TextColumn
from rich.table import Table

from finetuner.console import console, examples_table, make_progress, metrics_table, progress_console

if TYPE_CHECKING:
    import training.progress

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
JSON = Annotated[str | None, typer.Option(help='A JSON object.', show_default=False)]


@cli.callback()
def main() -> None:
    """Fine-tune embedding models on this machine, without the service."""


@cli.command()
def fit(
    train_data: Annotated[Path, typer.Argument(help='A CSV file of two columns, text and label.')],
    eval_data: Annotated[Path | None, typer.Option(help='A CSV file of queries that search the training data.')] = None,
    model: Annotated[str, typer.Option(help='A model directory, a short name or a hub id.')] = 'all-minilm-l6-v2',
    directory: Annotated[Path, typer.Option(help='Where the artifact goes.')] = Path('artifacts'),
    run_name: Annotated[str | None, typer.Option(help='The name of the artifact.', show_default='of the CSV')] = None,
    epochs: int = 5,
    batch_size: int = 64,
    learning_rate: Annotated[float | None, typer.Option(show_default='chosen')] = None,
    loss: Annotated[str, typer.Option(help='A loss of pytorch-metric-learning.')] = 'TripletMarginLoss',
    loss_options: JSON = None,
    miner: Annotated[str | None, typer.Option(help='A miner of pytorch-metric-learning.', show_default=False)] = None,
    miner_options: JSON = None,
    num_items_per_class: Annotated[int, typer.Option(help='Of a batch.')] = 4,
    device: Annotated[str, typer.Option(help='cpu, cuda or cuda:N; cuda is the CPU where there is no GPU.')] = 'cuda',
    seed: int = 0,
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
        'loss_options': _object('loss-options', loss_options),
        'miner': miner,
        'miner_options': _object('miner-options', miner_options),
        'num_items_per_class': num_items_per_class,
        'device': device,
        'seed': seed,
    }
    further = _object('options', options) or {}
    if given := sorted(further.keys() & {'train_data', 'eval_data', 'model', 'directory', 'report'}):
        raise ValueError(f'--options: {given[0]} has an option of its own')
    arguments |= further
    from training.local import fit as fit_here

    handler = RichHandler(console=progress_console, show_path=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, format='%(message)s', handlers=[handler])
    logging.getLogger('training').setLevel(logging.INFO)
    with make_progress(MofNCompleteColumn(), TextColumn('{task.fields[facts]}')) as bar:
        task = bar.add_task('Starting', total=None, facts='')

        def report(progress: training.progress.Progress) -> None:
            bar.update(task, description=escape(progress.title), facts=progress.facts)
            bar.update(task, completed=progress.step, total=progress.steps)

        result = fit_here(train_data, eval_data, model, directory=directory, report=report, **arguments)
    if result.examples['after']:
        console.print(examples_table(result.examples, k=3))
    if result.metrics['after']:
        console.print(metrics_table(result.metrics))
    stages = Table('Stage', 'Seconds', title='Where the time went', title_justify='left')
    for stage, seconds in result.seconds.items():
        stages.add_row(escape(stage), f'{seconds:.1f}')
    console.print(stages)
    console.print(f'Trained on {result.samples} samples, {result.samples_per_second:.0f} a second.')
    console.print(f'Serve it with\n  finetuner serve {result.artifact}', soft_wrap=True, highlight=False)


def _object(option: str, text: str | None) -> dict[str, Any] | None:
    try:
        value = None if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'--{option} is not JSON: {error}') from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'--{option} is not a JSON object')
    return value


def app() -> None:
    """The entry point. An error that the user can mend is one sentence, and exit code 1."""
    try:
        cli(prog_name='python -m training')
    except (ValueError, FloatingPointError) as error:
        progress_console.print(f'[red]{escape(str(error))}[/]', soft_wrap=True, highlight=False)
        sys.exit(1)


if __name__ == '__main__':
    app()
