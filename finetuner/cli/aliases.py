"""Artifacts, and the aliases that name them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from finetuner.cli.root import Experiment, Page, Size, Yes, cli, next_command, say_none
from finetuner.console import console

AliasName = Annotated[str, typer.Argument(metavar='ALIAS', help='name@stage, such as support@production.')]


@cli.command(rich_help_panel='Models')
def artifacts(page: Page = 1, size: Size = 50) -> None:
    """List artifacts, newest first."""
    import finetuner
    from finetuner.cli.tables import artifacts_table

    found = finetuner.list_artifacts(page, size)
    if not found:
        say_none('artifacts', page)
        next_command('fit', 'train.csv', '--eval-data', 'test.csv')
        return
    console.print(artifacts_table(found))
    next_command('promote', f'{found[0].experiment_name}/{found[0].run_name}', 'my-model@production')


@cli.command(rich_help_panel='Models')
def promote(
    name: Annotated[
        str, typer.Argument(metavar='NAME', help='A run, experiment/run, an artifact id, or another alias.')
    ],
    alias: AliasName,
    experiment: Experiment = None,
) -> None:
    """Let ALIAS name the artifact of a run. Services that serve the alias follow within seconds."""
    import finetuner

    is_run = experiment is not None or not _is_reference(name)
    promoted = finetuner.promote(alias, f'{experiment or "default"}/{name}' if is_run else name)
    before = f', {promoted.previous} before' if promoted.previous else ''
    console.print(f'[bold]{escape(alias)}[/] is now {promoted.artifact_id}{before}.', soft_wrap=True)
    next_command(*(('rollback', alias) if promoted.previous else ('serve', alias)))


@cli.command(rich_help_panel='Models')
def rollback(alias: AliasName) -> None:
    """Let ALIAS name again what it named before its last promotion."""
    import finetuner

    now = finetuner.rollback(alias)
    console.print(f'[bold]{escape(alias)}[/] is {now.artifact_id} again.', soft_wrap=True)
    next_command('aliases')


@cli.command(rich_help_panel='Models')
def aliases(page: Page = 1, size: Size = 50) -> None:
    """List aliases, and what each names now."""
    import finetuner
    from finetuner.cli.tables import aliases_table

    found = finetuner.list_aliases(page, size)
    if not found:
        say_none('aliases', page)
        next_command('artifacts')
        return
    console.print(aliases_table(found))
    next_command('serve', found[0].alias)


@cli.command(rich_help_panel='Models')
def delete_alias(alias: AliasName, yes: Yes = False) -> None:
    """Delete ALIAS with its history. What it named stays."""
    import finetuner

    if not yes:
        typer.confirm(f'Delete the alias {alias} for good?', abort=True, err=True)
    named = finetuner.delete_alias(alias)
    console.print(f'Deleted [bold]{escape(alias)}[/], which named {named.artifact_id}.', soft_wrap=True)
    next_command('aliases')


def _is_reference(name: str) -> bool:
    """Whether a name is more than that of a run."""
    from finetuner.inference.remote import is_id

    return '/' in name or '@' in name or is_id(name)
