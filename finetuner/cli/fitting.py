"""Starting runs, ending them, and having them go on."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer
from rich.markup import escape

from finetuner.cli.root import DEFAULT_MODEL, Experiment, RunName, cli, next_command, of_experiment
from finetuner.command_line import JSON, Freeze, has_its_own, json_object, parse_freeze
from finetuner.console import console, progress_console, show_log


@cli.command(rich_help_panel='Fine-tuning')
def fit(
    train: Annotated[
        str, typer.Argument(metavar='TRAIN', help='A CSV, JSONL or Parquet file, or the name of a data set.')
    ],
    model: Annotated[str, typer.Option(help='What to tune: a short name, a hub id or a directory.')] = DEFAULT_MODEL,
    eval_data: Annotated[
        str | None,
        typer.Option(help='Held-out data, which searches TRAIN before and after.', show_default=False),
    ] = None,
    val_split: Annotated[float, typer.Option(help='Share of TRAIN to hold out for val_loss.')] = 0.0,
    epochs: Annotated[int, typer.Option(min=1, help='Passes over the data.')] = 5,
    batch_size: Annotated[int | None, typer.Option(help='Items in a batch.', show_default='of the service')] = None,
    learning_rate: Annotated[float | None, typer.Option(show_default='of the service')] = None,
    loss: Annotated[str, typer.Option(help='A loss, see docs/training.md.')] = 'TripletMarginLoss',
    loss_options: JSON = None,
    miner: Annotated[str | None, typer.Option(help='A miner of pytorch-metric-learning.')] = None,
    miner_options: JSON = None,
    freeze: Freeze = None,
    output_dim: Annotated[int | None, typer.Option(help='Add a projection head.', show_default=False)] = None,
    model_artifact: Annotated[
        str | None, typer.Option(help='The id of an artifact to go on from.', show_default=False)
    ] = None,
    time_limit: Annotated[float | None, typer.Option(help='Seconds of training.', show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help='Matches of each query that count (k).')] = 20,
    seed: Annotated[int, typer.Option(help='Of all that is random.')] = 0,
    priority: Annotated[int, typer.Option(help='Of runs that wait, the highest are started first.')] = 0,
    cpus: Annotated[float | None, typer.Option(help='Cores that the run needs.', show_default='of the service')] = None,
    gpus: Annotated[int | None, typer.Option(help='GPUs that the run needs.', show_default='of the service')] = None,
    memory_limit: Annotated[
        int | None, typer.Option(help='Bytes of memory that the run may take.', show_default='of the service')
    ] = None,
    max_retries: Annotated[
        int | None,
        typer.Option(min=0, help='How often it goes on after a crash.', show_default='of the service'),
    ] = None,
    device: Annotated[str, typer.Option(help="'cuda' where the service has one, or 'cpu'.")] = 'cuda',
    csv_options: Annotated[
        str | None, typer.Option(help='How files are read: a JSON object, see docs/data.md.', show_default=False)
    ] = None,
    options: Annotated[
        str | None,
        typer.Option(help='A JSON object of further arguments of finetuner.fit.', show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option('--name', '--run-name', help='Of the run.', show_default='two random words')
    ] = None,
    experiment: Experiment = None,
    follow: Annotated[bool, typer.Option('--follow/--detach', help='Wait for the run, or return at once.')] = True,
) -> None:
    """Upload data, fine-tune a model on it, and compare before and after."""
    import finetuner
    from finetuner.callback import EvaluationCallback
    from finetuner.excepts import RunFailedError

    show_log('finetuner.data')  # which column was taken for what
    arguments: dict[str, Any] = {
        'run_name': name,
        'experiment_name': experiment,
        'val_split': val_split,
        'loss': loss,
        'loss_options': json_object('loss-options', loss_options),
        'miner': miner,
        'miner_options': json_object('miner-options', miner_options),
        'learning_rate': learning_rate,
        'epochs': epochs,
        'batch_size': batch_size,
        'freeze': parse_freeze(freeze),
        'output_dim': output_dim,
        'model_artifact': model_artifact,
        'time_limit': time_limit,
        'device': device,
        'csv_options': json_object('csv-options', csv_options),
        'seed': seed,
        'priority': priority,
        'cpus': cpus,
        'gpus': gpus,
        'memory_limit': memory_limit,
        'max_retries': max_retries,
    }
    further = json_object('options', options) or {}
    if twice := sorted(further.keys() & (arguments.keys() | {'model', 'train_data', 'eval_data'})):
        raise has_its_own(twice[0])
    if unknown := sorted(further.keys() - inspect.signature(finetuner.fit).parameters.keys()):
        raise ValueError(f'--options: {unknown[0]!r} is no argument of finetuner.fit')
    callbacks = further.pop('callbacks', None)
    evaluates = any(callback.get('name') == EvaluationCallback.__name__ for callback in callbacks or [])
    if eval_data and not evaluates and (callbacks is not None or limit != EvaluationCallback.limit):
        given = EvaluationCallback(eval_data, train, limit=limit, gather_examples=True)  # else it is the default
        callbacks = [given, *(callbacks or [])]
    run = finetuner.fit(model, train, eval_data, callbacks=callbacks, **arguments, **further)
    state = 'is in the queue' if run.record['status'] == 'CREATED' else 'is there already'
    console.print(f'Run [bold]{escape(run.name)}[/] {state}.')
    if not follow:
        next_command('logs', run.name, *of_experiment(experiment), '--follow')
        return
    try:
        run.wait()
    except KeyboardInterrupt:
        progress_console.print('The run goes on without you.')
        next_command('logs', run.name, *of_experiment(experiment), '--follow')
        raise typer.Exit(130) from None
    except RunFailedError as error:
        progress_console.print(f'[red]{escape(str(error))}[/]', soft_wrap=True, highlight=False)
        next_command('logs', run.name, *of_experiment(experiment))
        raise typer.Exit(1) from None
    console.print(f'Run [bold]{escape(run.name)}[/] has [green]finished[/]: its artifact is {run.artifact_id}.')
    if eval_data or evaluates:
        run.display_metrics()
    next_command('pull', run.name, *of_experiment(experiment))


@cli.command(rich_help_panel='Fine-tuning')
def cancel(name: RunName, experiment: Experiment = None) -> None:
    """End a run that waits or is at work."""
    import finetuner

    status = finetuner.get_run(name, experiment).cancel()
    ended = {'CANCELLED': '[magenta]cancelled[/]', 'FINISHED': 'finished already', 'FAILED': 'failed already'}
    console.print(f'Run [bold]{escape(name)}[/] is {ended.get(status["status"], escape(status["status"]))}.')
    next_command('metrics' if status['status'] == 'FINISHED' else 'resume', name, *of_experiment(experiment))


@cli.command(rich_help_panel='Fine-tuning')
def resume(name: RunName, experiment: Experiment = None) -> None:
    """Have a failed or cancelled run go on, from its last checkpoint if it left one."""
    import finetuner

    finetuner.get_run(name, experiment).resume()
    console.print(f'Run [bold]{escape(name)}[/] is in the queue.')
    next_command('logs', name, *of_experiment(experiment), '--follow')


@cli.command(rich_help_panel='Models')
def models(
    task: Annotated[str | None, typer.Option(help='Only for this, such as text-to-image.', show_default='all')] = None,
) -> None:
    """List the pretrained models."""
    import finetuner

    finetuner.describe_models(task)
    next_command('fit', 'train.csv', '--model', DEFAULT_MODEL)
