"""Who we are, and our tokens."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape

from finetuner.cli.root import Page, Size, Yes, cli, next_command, say_none
from finetuner.console import console


@cli.command(rich_help_panel='Account')
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
    next_command('fit', 'train.csv', '--eval-data', 'test.csv')


@cli.command(rich_help_panel='Account')
def logout() -> None:
    """Forget the token on this machine. `revoke-token` makes it worthless everywhere."""
    import finetuner
    from finetuner import settings

    host = settings.host()
    finetuner.logout()
    console.print(f'Logged out of [bold]{escape(host)}[/].')
    next_command('login')


@cli.command(rich_help_panel='Account')
def whoami() -> None:
    """Show the account and the service."""
    import finetuner
    from finetuner.client.session import current_session

    account = finetuner.whoami()
    console.print(f'[bold]{escape(account)}[/] at {escape(current_session().host)}')
    next_command('usage')


@cli.command(rich_help_panel='Account')
def usage() -> None:
    """Show what the account holds, and what it may hold."""
    import finetuner
    from finetuner.cli.tables import usage_table

    console.print(usage_table(finetuner.usage()))
    next_command('datasets')


@cli.command(rich_help_panel='Account')
def tokens(page: Page = 1, size: Size = 50) -> None:
    """List the tokens of the account."""
    import finetuner
    from finetuner.cli.tables import tokens_table

    found = finetuner.list_tokens(page, size)
    if not found:
        say_none('tokens', page)
    else:
        console.print(tokens_table(found))
    next_command('create-token', 'my-laptop', '--days', '90')


@cli.command(rich_help_panel='Account')
def create_token(
    name: Annotated[str, typer.Argument(metavar='NAME', help='What it is for; shown in lists.')],
    days: Annotated[float | None, typer.Option(help='How long it is valid.', show_default='for ever')] = None,
) -> None:
    """Make another token of the account. It is shown this once."""
    import finetuner
    from finetuner.client.session import current_session

    made = finetuner.create_token(name, days)
    typer.echo(made.token)  # alone on stdout, for scripts
    next_command('login', '--host', current_session().host, '--token', '-')


@cli.command(rich_help_panel='Account')
def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar='ID', help='As `tokens` lists it.')],
    yes: Yes = False,
) -> None:
    """Make a token worthless, for good."""
    import finetuner

    if not yes:
        typer.confirm(f'Revoke the token {token_id} for good?', abort=True, err=True)
    revoked = finetuner.revoke_token(token_id)
    console.print(f'Revoked the token [bold]{escape(revoked.name)}[/].')
    next_command('tokens')
