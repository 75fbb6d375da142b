"""What the commands have in common: the program that they belong to, and how each output ends."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer
from rich.markup import escape

from finetuner.console import console, progress_console

DEFAULT_MODEL = 'all-minilm-l6-v2'

cli = typer.Typer(
    name='finetuner',
    help='Fine-tune embedding models on your own data and serve them.',
    epilog='Begin with: finetuner serve',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
RunName = Annotated[str, typer.Argument(metavar='NAME', help='The name of the run.')]
Experiment = Annotated[str | None, typer.Option(help='The experiment of the run.', show_default='default')]
Page = Annotated[int, typer.Option(min=1)]
Size = Annotated[int, typer.Option(min=1, max=100, help='Items on a page.')]
Yes = Annotated[bool, typer.Option('--yes', '-y', help='Do not ask.')]


@cli.callback()
def main(
    debug: Annotated[bool, typer.Option('--debug', help='Show the traceback of an error.')] = False,
) -> None:
    pass  # `app` takes --debug, so that it may stand anywhere


def next_command(*command: str) -> None:
    """Show the obvious next command, beside the output rather than in it."""
    progress_console.print(f'[dim]Next:[/] finetuner {escape(shlex.join(command))}', soft_wrap=True, highlight=False)


def of_experiment(name: str | None) -> list[str]:
    """The option that names the experiment of a run, where it is not the default."""
    return [] if name in (None, 'default') else ['--experiment', str(name)]


def say_none(what: str, page: int) -> None:
    """Say that a page of a list is empty."""
    console.print(f'There are no {what}.' if page == 1 else f'There are no {what} on page {page}.')
