"""The command line: everything that the client can do, each output ending with the obvious next command."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.markup import escape

from finetuner.command_line import JSON, Freeze, complete_freeze, json_object, parse_freeze
from finetuner.console import console, progress_console, show_log
from finetuner.export.commands import export

if TYPE_CHECKING:
    import numpy as np

DEFAULT_MODEL = 'all-minilm-l6-v2'

cli = typer.Typer(
    name='finetuner',
    help='Fine-tune embedding models on your own data and serve them.',
    epilog='Begin with: finetuner serve',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.add_typer(export, name='export')
RunName = Annotated[str, typer.Argument(metavar='NAME', help='The name of the run.')]
Experiment = Annotated[str | None, typer.Option(help='The experiment of the run.', show_default='default')]


def app(arguments: list[str] | None = None) -> None:
    """The entry point. An error is one sentence, and exit code 1; `--debug` shows where it came from."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = '--debug' in arguments
    try:
        cli(complete_freeze([argument for argument in arguments if argument != '--debug']))
    except Exception as error:
        if debug:
            raise
        message = str(error) or type(error).__name__
        if message.split(' ')[0].isalpha():  # no file name
            message = message[:1].upper() + message[1:]
        progress_console.print(f'[red]{escape(message)}[/]', soft_wrap=True, highlight=False)
        sys.exit(1)


@cli.callback()
def main(
    debug: Annotated[bool, typer.Option('--debug', help='Show the traceback of an error.')] = False,
) -> None:
    pass  # `app` takes --debug, so that it may stand anywhere


@cli.command()
def serve(
    artifact: Annotated[
        str | None,
        typer.Argument(help='Serve only this model: a zip, a directory, a URL or an artifact id.', show_default=False),
    ] = None,
    port: Annotated[int, typer.Option(envvar='FINETUNER_PORT', help='Of gRPC.')] = 51000,
    http_port: Annotated[int, typer.Option(envvar='FINETUNER_HTTP_PORT', help='Of HTTP.')] = 51001,
    home: Annotated[Path | None, typer.Option(help='The folder of all state.', show_default='FINETUNER_HOME')] = None,
) -> None:
    """Start the service on this machine: data, fine-tuning and encoding, or encoding with one ARTIFACT."""
    from finetuner.service import run_service

    raise typer.Exit(run_service(artifact, port, http_port, home))


@cli.command()
def login(
    host: Annotated[str | None, typer.Option(help='The service, grpc://name:port.')] = None,
    token: Annotated[
        str | None, typer.Option(help='Your token; - reads it from stdin. Asked for if not given and not known.')
    ] = None,
    force: Annotated[bool, typer.Option('--force', help='Ask for a token although one is known.')] = False,
) -> None:
    """Choose a service and check the token. On the machine of the service it needs no options."""
    import finetuner
    from finetuner.client.session import current_session

    if token == '-' and not (token := sys.stdin.readline().strip()):
        raise ValueError('--token - was given, but there is no token on stdin')
    finetuner.login(force=force, host=host, token=token)
    session = current_session()
    account = session.request('/whoami').tags.get('account')
    console.print(f'Logged in to [bold]{escape(session.host)}[/] as [bold]{escape(str(account))}[/].')
    _next('fit', 'train.csv', '--eval-data', 'test.csv')


@cli.command()
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
    }
    further = json_object('options', options) or {}
    if twice := sorted(further.keys() & (arguments.keys() | {'model', 'train_data', 'eval_data'})):
        raise ValueError(f'--options: {twice[0]} has an option of its own')
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
        _next('logs', run.name, *_experiment(experiment), '--follow')
        return
    try:
        run.wait()
    except KeyboardInterrupt:
        progress_console.print('The run goes on without you.')
        _next('logs', run.name, *_experiment(experiment), '--follow')
        raise typer.Exit(130) from None
    console.print(f'Run [bold]{escape(run.name)}[/] has [green]finished[/]: its artifact is {run.artifact_id}.')
    if eval_data or evaluates:
        run.display_metrics()
    _next('pull', run.name, *_experiment(experiment))


@cli.command()
def cancel(name: RunName, experiment: Experiment = None) -> None:
    """End a run that waits or is at work."""
    import finetuner

    status = finetuner.get_run(name, experiment).cancel()
    ended = {'CANCELLED': '[magenta]cancelled[/]', 'FINISHED': 'finished already', 'FAILED': 'failed already'}
    console.print(f'Run [bold]{escape(name)}[/] is {ended.get(status["status"], escape(status["status"]))}.')
    _next('metrics' if status['status'] == 'FINISHED' else 'resume', name, *_experiment(experiment))


@cli.command()
def resume(name: RunName, experiment: Experiment = None) -> None:
    """Have a failed or cancelled run go on, from its last checkpoint if it left one."""
    import finetuner

    finetuner.get_run(name, experiment).resume()
    console.print(f'Run [bold]{escape(name)}[/] is in the queue.')
    _next('logs', name, *_experiment(experiment), '--follow')


@cli.command()
def models(
    task: Annotated[str | None, typer.Option(help='Only for this, such as text-to-image.', show_default='all')] = None,
) -> None:
    """List the pretrained models."""
    import finetuner

    finetuner.describe_models(task)
    _next('fit', 'train.csv', '--model', DEFAULT_MODEL)


@cli.command()
def runs(
    experiment: Annotated[str | None, typer.Option(help='Only of this experiment.', show_default='all')] = None,
    page: Annotated[int, typer.Option(min=1)] = 1,
    size: Annotated[int, typer.Option(min=1, max=100, help='Runs on a page.')] = 50,
) -> None:
    """List runs, newest first."""
    import finetuner
    from finetuner.console import runs_table

    found = finetuner.list_runs(experiment, page, size)
    if not found:
        console.print('There are no runs.' if page == 1 else f'There are no runs on page {page}.')
        _next('fit', 'train.csv', '--eval-data', 'test.csv')
        return
    console.print(runs_table(found))
    _next('status', found[0].name, *_experiment(found[0].experiment_name))


@cli.command()
def delete(
    names: Annotated[list[str] | None, typer.Argument(metavar='NAME...', show_default=False)] = None,
    experiment: Annotated[
        str | None, typer.Option(help='Of the runs; without names, the experiment itself.', show_default='default')
    ] = None,
    yes: Annotated[bool, typer.Option('--yes', '-y', help='Do not ask.')] = False,
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
    _next('runs')


@cli.command()
def experiments(
    page: Annotated[int, typer.Option(min=1)] = 1,
    size: Annotated[int, typer.Option(min=1, max=100, help='Experiments on a page.')] = 50,
) -> None:
    """List experiments, newest first."""
    import finetuner
    from finetuner.console import experiments_table

    found = finetuner.list_experiments(page, size)
    if not found:
        console.print('There are no experiments.' if page == 1 else f'There are no experiments on page {page}.')
        _next('fit', 'train.csv', '--eval-data', 'test.csv')
        return
    console.print(experiments_table(found))
    _next('runs', '--experiment', found[0].name)


@cli.command()
def status(name: RunName, experiment: Experiment = None) -> None:
    """Show how far a run is."""
    import finetuner
    from finetuner.console import runs_table

    run = finetuner.get_run(name, experiment)
    console.print(runs_table([run]))
    if run.record['status'] in ('FAILED', 'CANCELLED'):
        console.print(escape(run.record.get('details') or ''), soft_wrap=True, highlight=False)
    after = {'FINISHED': 'metrics', 'FAILED': 'logs', 'CANCELLED': 'resume'}.get(run.status()['status'])
    _next(after or 'logs', name, *_experiment(experiment), *([] if after else ['--follow']))


@cli.command()
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
    ended = run.status()['status']
    if ended == 'FINISHED':
        _next('metrics', name, *_experiment(experiment))
    else:
        _next('status', name, *_experiment(experiment))


@cli.command()
def metrics(name: RunName, experiment: Experiment = None) -> None:
    """Compare the retrieval metrics before and after."""
    import finetuner

    run = finetuner.get_run(name, experiment)
    run.display_metrics()
    _next('examples' if run.metrics().get('after') else 'pull', name, *_experiment(experiment))


@cli.command()
def examples(
    name: RunName,
    experiment: Experiment = None,
    k: Annotated[int, typer.Option('-k', min=1, help='Matches of each query.')] = 5,
    queries: Annotated[int, typer.Option(min=1, help='How many queries.')] = 5,
) -> None:
    """Show queries with their best matches before and after."""
    import finetuner

    finetuner.get_run(name, experiment).display_examples(k, queries)
    _next('pull', name, *_experiment(experiment))


@cli.command()
def pull(
    name: RunName,
    directory: Annotated[str, typer.Argument(metavar='[DIR]', help='Where to put it.')] = 'artifacts/',
    experiment: Experiment = None,
) -> None:
    """Download the tuned model of a run."""
    import finetuner

    path = finetuner.get_run(name, experiment).save_artifact(directory)
    console.print(f'Saved [bold]{escape(path)}[/] ({Path(path).stat().st_size / 1e6:.1f} MB).')
    _next('encode', '--artifact', path, 'some text to encode')


@cli.command()
def encode(
    texts: Annotated[list[str] | None, typer.Argument(metavar='TEXT...', show_default=False)] = None,
    file: Annotated[
        Path | None, typer.Option('--file', '-f', help='A file with one text in each line; - is stdin.')
    ] = None,
    artifact: Annotated[
        str | None,
        typer.Option(help='A zip, a directory or an artifact id, to encode here.', show_default='ask the service'),
    ] = None,
    output: Annotated[
        Path | None, typer.Option('--output', '-o', help='Write .npy or .jsonl; - is JSON lines on stdout.')
    ] = None,
) -> None:
    """Turn texts into embeddings: by the service, or here with an artifact."""
    from finetuner.console import embeddings_table

    chosen = [*(texts or []), *(_read_lines(file) if file else [])]
    if not chosen:
        raise ValueError('there is nothing to encode: give texts, or --file with one text in each line')
    if output and str(output) != '-' and output.suffix not in ('.npy', '.jsonl'):
        raise ValueError(f'--output {output} must end in .npy or .jsonl')
    embeddings = _encode(chosen, artifact)
    if output:
        _write_embeddings(chosen, embeddings, output)
    else:
        console.print(embeddings_table(chosen, embeddings))
    if artifact:
        _next('serve', artifact)
    else:
        _next('encode', '--file', 'texts.txt', '--output', 'embeddings.npy')


def _encode(texts: list[str], artifact: str | None) -> np.ndarray:
    if artifact is None:
        from finetuner.client.encoding import encode_remotely

        return encode_remotely(texts)
    import finetuner

    return finetuner.encode(finetuner.get_model(artifact), texts)


def _read_lines(file: Path) -> list[str]:
    content = sys.stdin.buffer.read() if str(file) == '-' else file.expanduser().read_bytes()
    # bytes, and no splitlines: nothing but a newline ends a line
    return [line.strip('\r') for line in content.decode('utf-8').split('\n') if line.strip()]


def _write_embeddings(texts: list[str], embeddings: np.ndarray, output: Path) -> None:
    if str(output) == '-':
        _write_lines(texts, embeddings, sys.stdout)
        return
    aside = output.with_name(f'.{output.name}.{os.getpid()}')
    try:
        if output.suffix == '.npy':
            import numpy as np

            with aside.open('wb') as binary:
                np.save(binary, embeddings)
        else:
            with aside.open('w', encoding='utf-8') as file:
                _write_lines(texts, embeddings, file)
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)
    console.print(
        f'Wrote {len(texts)} embeddings of {embeddings.shape[1]} dimensions to [bold]{escape(str(output))}[/].'
    )


def _write_lines(texts: list[str], embeddings: np.ndarray, file: TextIO) -> None:
    for text, row in zip(texts, embeddings, strict=True):
        file.write(json.dumps({'text': text, 'embedding': row.tolist()}) + '\n')


def _experiment(name: str | None) -> list[str]:
    return [] if name in (None, 'default') else ['--experiment', str(name)]


def _next(*command: str) -> None:
    """Show the obvious next command, beside the output rather than in it."""
    progress_console.print(f'[dim]Next:[/] finetuner {escape(shlex.join(command))}', soft_wrap=True, highlight=False)
