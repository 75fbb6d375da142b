"""The command line: everything that the client can do, each output ending with the obvious next command."""

from __future__ import annotations

import sys

from rich.markup import escape

from finetuner.cli.root import cli
from finetuner.command_line import complete_freeze
from finetuner.console import progress_console
from finetuner.export.commands import export

# isort: off
# in the order in which --help lists them
from finetuner.cli import serving, fitting, runs, experiments, results, encoding, aliases, data, account  # noqa: F401
# isort: on

cli.add_typer(export, name='export')


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
