"""`python -m registry`: accounts, their tokens and quotas, for who runs the service.

FINETUNER_HOME and FINETUNER_DATABASE_URL must be those of the service.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from finetuner.excepts import RunInProgressError, UnavailableError
from finetuner.settings import credentials_path, save_token
from registry.backup import check_backup, restore_backup, write_backup
from registry.database import Database
from registry.first_start import LOCAL_ACCOUNT
from registry.records import Page
from registry.registry import Registry, open_places

Name = Annotated[str, typer.Argument(help='Of the account.')]
PageOption = Annotated[int, typer.Option('--page', min=1, help='Which page of the list.')]
AccountOption = Annotated[str, typer.Option('--account', help='Whose tokens.')]

MAX_DAYS = 36_500

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def token(
    name: Annotated[str, typer.Option(help='What the token is for; shown in lists.')] = 'command-line',
    account: AccountOption = LOCAL_ACCOUNT,
    days: Annotated[float | None, typer.Option(help='How long it is valid; for ever by default.')] = None,
    save: Annotated[bool, typer.Option('--save', help='Write it to the credentials file of this user.')] = False,
) -> None:
    """Print a new token. It is shown this once."""
    if days is not None and not 0 < days <= MAX_DAYS:
        raise ValueError(f'--days is {days:g}: give a number above 0, at most {MAX_DAYS}')
    with Registry.open_existing() as registry:
        expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
        made = registry.create_token(registry.get_account(account).id, name, expires_at)
        typer.echo(f'The token is in {_keep(made)}' if save else made)
        _tell_place(registry.database)


@app.command()
def tokens(account: AccountOption = LOCAL_ACCOUNT, page: PageOption = 1) -> None:
    """List the tokens of an account: id, name, and what has become of them."""
    with Registry.open_existing() as registry:
        found = registry.list_tokens(registry.get_account(account).id, page)
        for item in found.items:
            state = f'valid until {item.expires_at:%Y-%m-%d %H:%M} UTC' if item.expires_at else 'valid'
            if item.expires_at and item.expires_at <= datetime.now(UTC):
                state = f'expired {item.expires_at:%Y-%m-%d %H:%M} UTC'
            if item.revoked_at:
                state = f'revoked {item.revoked_at:%Y-%m-%d %H:%M} UTC'
            typer.echo(f'{item.id}  {item.name}  {state}')
        _tell_page(found)


@app.command()
def revoke(token_id: str, account: AccountOption = LOCAL_ACCOUNT) -> None:
    """Make a token worthless from now on."""
    with Registry.open_existing() as registry:
        registry.revoke_token(registry.get_account(account).id, token_id)
        _tell_place(registry.database)


@app.command()
def backup(folder: Path) -> None:
    """Copy database and objects into a folder, while the service runs; again, to bring it up to date."""
    with Registry.open_existing() as registry:
        objects, size = write_backup(registry.database, registry.objects, folder)
    typer.echo(f'{folder} has the database and {objects} objects ({size} bytes)')


@app.command()
def restore(folder: Path) -> None:
    """Put a backup into an empty registry, whatever its database and object store are. It is made if there is none."""
    check_backup(folder)  # before anything is made
    _, database, store = open_places()
    try:
        objects, size = restore_backup(folder, database, store)
    finally:
        database.close()
    typer.echo(f'Restored the database and {objects} objects ({size} bytes)')
    _tell_place(database)


@app.command()
def account(name: Name) -> None:
    """Make an account."""
    with Registry.open_existing() as registry:
        registry.create_account(name)
        _tell_place(registry.database)
    typer.echo(f'The account {name!r} is made. `python -m registry token --account {name}` prints a token for it')


@app.command(name='delete-account')
def delete_account(name: Name, yes: Annotated[bool, typer.Option('--yes', '-y', help='Do not ask.')] = False) -> None:
    """Delete an account with its tokens, data sets, runs, artifacts, aliases, clicks and search items, for good.

    Runs that are at work are to be cancelled first.
    """
    with Registry.open_existing() as registry:
        found = registry.get_account(name)
        used = registry.usage(found.id)
        kinds = {
            'data sets': used.datasets,
            'artifacts': used.artifacts,
            'checkpoints': used.checkpoints,
            'search items': used.search_items,
        }
        stored = [f'{kind.count} {what} ({_show_bytes(kind.bytes)})' for what, kind in kinds.items()]
        has = ', '.join([*stored, f'{used.runs} runs'])
        if not yes:
            place = registry.database.engine.url
            typer.confirm(f'Delete the account {name!r} of {place} with {has}, for good?', abort=True)
        registry.delete_account(found.id)
        _tell_place(registry.database)
    typer.echo(f'The account {name!r} is deleted, with {has}')
    typer.echo('`python -m training.iterations.tidying` removes what its tasks have left in MLflow', err=True)


@app.command()
def accounts(page: PageOption = 1) -> None:
    """List the accounts: id, name, and when they were made."""
    with Registry.open_existing() as registry:
        found = registry.list_accounts(page)
    for item in found.items:
        typer.echo(f'{item.id}  {item.name}  {item.created_at:%Y-%m-%d %H:%M} UTC')
    _tell_page(found)


@app.command()
def quota(
    name: Name,
    size: Annotated[
        str | None, typer.Option('--bytes', help="Of data sets and artifacts, such as 10GB; 'none' for no limit.")
    ] = None,
    runs: Annotated[str | None, typer.Option(help="At work at the same time, such as 2; 'none' for no limit.")] = None,
) -> None:
    """Say what an account may have, and print it. What is not given stays as it is."""
    with Registry.open_existing() as registry:
        found = registry.get_account(name)
        max_bytes = found.max_bytes if size is None else _parse_limit(size, ByteSize, '10GB')
        max_runs = found.max_runs if runs is None else _parse_limit(runs, int, '2')
        made = registry.set_quota(found.id, max_bytes, max_runs)
        _tell_place(registry.database)
    limit = 'any number of' if made.max_runs is None else made.max_runs
    typer.echo(f'{name}: {_show_bytes(made.max_bytes)}, {limit} runs at work')


@app.command()
def usage(page: PageOption = 1) -> None:
    """Show what the accounts have, and what they may have."""
    with Registry.open_existing() as registry:
        found = registry.list_accounts(page)
        used = [registry.usage(item.id) for item in found.items]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column('account', overflow='fold', min_width=7)
    for title in ('data sets', 'artifacts', 'quota', 'checkpoints', 'search', 'waiting', 'at work', 'runs'):
        table.add_column(title, min_width=len(title))
    for item in used:
        kinds = (item.datasets, item.artifacts, item.checkpoints, item.search_items)
        datasets, artifacts, *others = (f'{kind.count}: {_show_bytes(kind.bytes)}' for kind in kinds)
        table.add_row(
            item.account.name,
            datasets,
            artifacts,
            _show_bytes(item.account.max_bytes),
            *others,
            str(item.waiting),
            str(item.at_work) if item.account.max_runs is None else f'{item.at_work} of {item.account.max_runs}',
            str(item.runs),
        )
    Console().print(table)
    _tell_page(found)


def _tell_place(database: Database) -> None:
    """Say beside the output which registry was changed."""
    typer.echo(f'Registry: {database.engine.url}', err=True)


def _tell_page(page: Page[Any]) -> None:
    pages = -(-page.total // page.size)
    if pages > 1:
        typer.echo(f'page {page.number} of {pages}: --page shows the others', err=True)


def _parse_limit(text: str, kind: type[int], example: str) -> int | None:
    if text.lower() == 'none':
        return None
    try:
        return int(TypeAdapter(kind).validate_python(text))
    except ValidationError as error:
        raise ValueError(f"{text!r} is no limit: write a number such as {example}, or 'none'") from error


def _show_bytes(size: int | None) -> str:
    return 'any' if size is None else ByteSize(size).human_readable(decimal=True)


def _keep(token: str) -> Path:
    """Save the token for this user. A credentials file that is damaged is set aside: nothing can be kept in it."""
    try:
        return save_token(token)
    except ValueError:
        path = credentials_path()
        path.replace(path.with_name(f'{path.name}.damaged'))
        return save_token(token)


if __name__ == '__main__':
    try:
        app()
    except (UnavailableError, RunInProgressError, ValueError, OSError) as error:
        typer.secho(str(error), err=True, fg='red')
        raise SystemExit(1) from None
