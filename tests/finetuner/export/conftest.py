"""The command line of the export, and what it wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from finetuner.cli import cli


@dataclass
class Written:
    output: str
    folder: Path

    def compose(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / 'docker-compose.yml').read_text())

    def manifests(self) -> list[dict[str, Any]]:
        files = sorted((self.folder / 'kubernetes').glob('*.yaml'))
        found = [one for file in files for one in yaml.safe_load_all(file.read_text())]
        return [one for one in found if one['kind'] != 'Kustomization']

    def manifest(self, kind: str, name: str) -> dict[str, Any]:
        (found,) = [one for one in self.manifests() if (one['kind'], one['metadata']['name']) == (kind, name)]
        return found

    def following(self) -> list[str]:
        """The commands that the export says are next."""
        lines = self.output.splitlines()
        return [line.partition(': ')[2] for line in lines if line.startswith(('Next: ', 'then: '))]


@pytest.fixture
def export(tmp_path, monkeypatch):
    """Run `finetuner export` in a folder of its own; an error is raised."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Written:
        done = CliRunner().invoke(cli, ['export', *arguments])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return Written(done.output, tmp_path)

    return run
