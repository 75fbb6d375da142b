"""Data sets of the service."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from finetuner.cli.root import Page, Size, Yes, cli, next_command, say_none
from finetuner.console import console


@cli.command(rich_help_panel='Data')
def datasets(page: Page = 1, size: Size = 50) -> None:
    """List data sets, newest first."""
    import finetuner
    from finetuner.cli.tables import datasets_table

    found = finetuner.list_datasets(page, size)
    if not found:
        say_none('data sets', page)
        next_command('fit', 'train.csv', '--eval-data', 'test.csv')
        return
    console.print(datasets_table(found))
    next_command('fit', found[0].name)


@cli.command(rich_help_panel='Data')
def delete_dataset(
    names: Annotated[list[str], typer.Argument(metavar='NAME...', show_default=False)], yes: Yes = False
) -> None:
    """Delete data sets for good. Runs that have read them stay."""
    import finetuner

    if not yes:
        typer.confirm(f'Delete {", ".join(names)} for good?', abort=True, err=True)
    for name in names:
        deleted = finetuner.delete_dataset(name)
        console.print(f'Deleted [bold]{escape(deleted.name)}[/] ({deleted.rows:,} rows).')
    next_command('datasets')
