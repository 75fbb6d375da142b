"""Writing what was generated: YAML as a person would, whole files or none, and secrets that stay what they are."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

MARK = '# Made by `finetuner export`.'


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(documents: Iterable[Mapping[str, Any]]) -> str:
    """Documents as YAML, under a line that says where they come from."""
    texts = [
        yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=float('inf'), allow_unicode=True)
        for document in documents
    ]
    return f'{MARK}\n---\n' + '---\n'.join(texts)


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Write the whole file or none of it."""
    aside = path.with_name(f'.{path.name}.{secrets.token_hex(4)}')
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), 'w', encoding='utf-8') as file:
            file.write(text)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Whether a file is one that an earlier export wrote."""
    with path.open('rb') as file:
        return file.read(len(MARK)) == MARK.encode()


def refuse_foreign(path: Path) -> None:
    """
    :raises FileExistsError: there is a file at `path` that no export wrote.
    """
    if path.exists() and not (path.is_file() and is_ours(path)):
        raise FileExistsError(f'{path} is not a file that finetuner export made: name another with --output')


def remove_stale(folder: Path, kept: Iterable[str]) -> None:
    """Remove files of an earlier export that this one does not have: else they would be applied with the folder."""
    for path in folder.glob('*.yaml'):
        if path.name not in set(kept) and is_ours(path):
            path.unlink()
