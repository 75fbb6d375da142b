"""What an export writes into the checkout is neither committed nor copied into an image."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_nothing_that_is_exported_is_committed(export, tmp_path):
    shutil.copy(ROOT / '.gitignore', tmp_path)
    subprocess.run(['git', 'init', '--quiet', tmp_path], check=True)
    export('compose', '--database', 'postgres', '--generate-secrets')
    export('kubernetes', '--database', 'postgres', '--generate-secrets')
    status = ['git', '-C', tmp_path, 'status', '--porcelain', '--untracked-files=all']
    assert subprocess.run(status, check=True, capture_output=True, text=True).stdout == '?? .gitignore\n'


def test_an_image_is_built_of_what_is_named_alone():
    first, *others = (ROOT / '.dockerignore').read_text().split()
    assert first == '*'
    assert not {'!secrets', '!kubernetes', '!docker-compose.yml'} & set(others)
