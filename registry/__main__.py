"""`python -m registry`: tokens of the service on this machine, made by who runs it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from finetuner.excepts import RegistryError
from finetuner.settings import credentials_path, save_token
from registry.backup import restore_backup, write_backup
from registry.first_start import LOCAL_ACCOUNT
from registry.registry import Registry, open_places

AccountOption = Annotated[str, typer.Option('--account', help='Whose tokens.')]

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def token(
    name: Annotated[str, typer.Option(help='What the token is for; shown in lists.')] = 'command-line',
    account: AccountOption = LOCAL_ACCOUNT,
    days: Annotated[float | None, typer.Option(min=0, help='How long it is valid; for ever by default.')] = None,
    save: Annotated[bool, typer.Option('--save', help='Write it to the credentials file of this user.')] = False,
) -> None:
    """Print a new token. It is shown this once."""
    with Registry.open() as registry:
        expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
        made = registry.create_token(registry.get_account(account).id, name, expires_at)
        typer.echo(f'The token is in {_keep(made)}' if save else made)


@app.command()
def tokens(account: AccountOption = LOCAL_ACCOUNT) -> None:
    """List the tokens of an account: id, name, and what has become of them."""
    with Registry.open() as registry:
        for item in registry.list_tokens(registry.get_account(account).id):
            state = f'valid until {item.expires_at:%Y-%m-%d %H:%M} UTC' if item.expires_at else 'valid'
            if item.expires_at and item.expires_at <= datetime.now(UTC):
                state = f'expired {item.expires_at:%Y-%m-%d %H:%M} UTC'
            if item.revoked_at:
                state = f'revoked {item.revoked_at:%Y-%m-%d %H:%M} UTC'
            typer.echo(f'{item.id}  {item.name}  {state}')


@app.command()
def revoke(token_id: str, account: AccountOption = LOCAL_ACCOUNT) -> None:
    """Make a token worthless from now on."""
    with Registry.open() as registry:
        registry.revoke_token(registry.get_account(account).id, token_id)


@app.command()
def backup(folder: Path) -> None:
    """Copy database and objects into a folder, while the service runs; again, to bring it up to date."""
    with Registry.open() as registry:
        objects, size = write_backup(registry.database, registry.objects, folder)
    typer.echo(f'{folder} has the database and {objects} objects ({size} bytes)')


@app.command()
def restore(folder: Path) -> None:
    """Put a backup into an empty registry, whatever its database and object store are."""
    _, database, store = open_places()
    try:
        objects, size = restore_backup(folder, database, store)
    finally:
        database.close()
    typer.echo(f'Restored the database and {objects} objects ({size} bytes)')


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
    except (RegistryError, ValueError, OSError) as error:
        typer.secho(str(error), err=True, fg='red')
        raise SystemExit(1) from None
