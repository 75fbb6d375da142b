"""What came out of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from finetuner.cli.root import Experiment, RunName, cli, next_command, of_experiment
from finetuner.console import console
from finetuner.constants import TUNING_TASK


@cli.command(rich_help_panel='Fine-tuning')
def metrics(name: RunName, experiment: Experiment = None) -> None:
    """Compare the retrieval metrics before and after."""
    import finetuner

    run = finetuner.get_run(name, experiment)
    run.display_metrics()
    has_examples = run.metrics().get('after') and TUNING_TASK not in run.config
    next_command('examples' if has_examples else 'pull', name, *of_experiment(experiment))


@cli.command(rich_help_panel='Fine-tuning')
def examples(
    name: RunName,
    experiment: Experiment = None,
    k: Annotated[int, typer.Option('-k', min=1, help='Matches of each query.')] = 5,
    queries: Annotated[int, typer.Option(min=1, help='How many queries.')] = 5,
) -> None:
    """Show queries with their best matches before and after."""
    import finetuner

    finetuner.get_run(name, experiment).display_examples(k, queries)
    next_command('pull', name, *of_experiment(experiment))


@cli.command(rich_help_panel='Fine-tuning')
def pull(
    name: RunName,
    directory: Annotated[str, typer.Argument(metavar='[DIR]', help='Where to put it.')] = 'artifacts/',
    experiment: Experiment = None,
) -> None:
    """Download the tuned model of a run."""
    import finetuner

    path = finetuner.get_run(name, experiment).save_artifact(directory)
    console.print(f'Saved [bold]{escape(path)}[/] ({Path(path).stat().st_size / 1e6:.1f} MB).')
    next_command('encode', '--artifact', path, 'some text to encode')
