"""Embeddings."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.markup import escape

from finetuner.cli.root import cli, next_command
from finetuner.console import console

if TYPE_CHECKING:
    import numpy as np


@cli.command(rich_help_panel='Models')
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
        next_command('serve', artifact)
    else:
        next_command('encode', '--file', 'texts.txt', '--output', 'embeddings.npy')


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
