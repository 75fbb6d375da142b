"""Starting the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetuner.cli.root import cli


@cli.command(rich_help_panel='Service')
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
