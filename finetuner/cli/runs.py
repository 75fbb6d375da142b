"""How runs are."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape

from finetuner.cli.root import Experiment, Page, RunName, Size, Yes, cli, next_command, of_experiment, say_none
from finetuner.console import console

# what is worth looking at next, by the status of a run
AFTER_STATUS = {'FINISHED': ('metrics',), 'FAILED': ('logs',), 'CANCELLED': ('resume',)}
AFTER_LOGS = {
    'FINISHED': ('metrics',),
    'FAILED': ('resume',),
    'CANCELLED': ('resume',),
    'STARTED': ('logs', '--follow'),
}


@cli.command(rich_help_panel='Fine-tuning')
def runs(
    experiment: Annotated[str | None, typer.Option(help='Only of this experiment.', show_default='all')] = None,
    page: Page = 1,
    size: Size = 50,
) -> None:
    """List runs, newest first."""
    import finetuner
    from finetuner.cli.tables import runs_table

    found = finetuner.list_runs(experiment, page, size)
    if not found:
        say_none('runs', page)
        next_command('fit', 'train.csv', '--eval-data', 'test.csv')
        return
    console.print(runs_table(found))
    next_command('status', found[0].name, *of_experiment(found[0].experiment_name))


@cli.command(rich_help_panel='Fine-tuning')
def status(name: RunName, experiment: Experiment = None) -> None:
    """Show how far a run is."""
    import finetuner
    from finetuner.cli.tables import runs_table

    run = finetuner.get_run(name, experiment)
    console.print(runs_table([run]))
    if run.record['status'] in ('FAILED', 'CANCELLED'):
        console.print(escape(run.record.get('details') or ''), soft_wrap=True, highlight=False)
    command, *options = AFTER_STATUS.get(run.record['status'], ('logs', '--follow'))
    next_command(command, name, *of_experiment(experiment), *options)


@cli.command(rich_help_panel='Fine-tuning')
def logs(
    name: RunName,
    experiment: Experiment = None,
    follow: Annotated[bool, typer.Option('--follow', '-f', help='Go on until the run has ended.')] = False,
) -> None:
    """Print the log of a run."""
    import finetuner

    run = finetuner.get_run(name, experiment)
    for text in run.stream_logs() if follow else [run.logs()]:
        sys.stdout.write(text)
        sys.stdout.flush()
    record = run.refresh()
    if record['status'] == 'FAILED' and not (record.get('progress') or {}).get('step'):
        next_command('fit', '--help')  # it had not begun to learn: the data or the arguments are to be mended
        return
    command, *options = AFTER_LOGS.get(record['status'], ('status',))
    next_command(command, name, *of_experiment(experiment), *options)


@cli.command(rich_help_panel='Fine-tuning')
def delete(
    names: Annotated[list[str] | None, typer.Argument(metavar='NAME...', show_default=False)] = None,
    experiment: Annotated[
        str | None, typer.Option(help='Of the runs; without names, the experiment itself.', show_default='default')
    ] = None,
    yes: Yes = False,
) -> None:
    """Delete runs, or a whole experiment, with artifacts, logs and checkpoints."""
    import finetuner

    if not names and experiment is None:
        raise ValueError('give the names of runs, or --experiment to delete with all its runs')
    if names:
        what = ', '.join(names)
    else:
        what = f'the experiment {experiment} with all its runs ({finetuner.get_experiment(str(experiment)).runs})'
    if not yes:
        typer.confirm(f'Delete {what} for good?', abort=True, err=True)
    if names:
        for name in names:
            finetuner.delete_run(name, experiment)
    else:
        finetuner.delete_experiment(str(experiment))
    console.print(f'Deleted {escape(what)}.')
    next_command('runs')
