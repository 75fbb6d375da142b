import re
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

import registry as registry_package
from finetuner import settings
from registry.__main__ import app


def run(*arguments):
    return CliRunner().invoke(app, arguments)


def test_a_new_token_is_printed_alone(registry):
    kept = settings.load_token()
    result = run('token', '--name', 'laptop')
    assert result.exit_code == 0
    assert registry.authenticate(result.stdout.strip()).name == 'local'
    assert settings.load_token() == kept


def test_lost_credentials_come_back(registry):
    settings.credentials_path().unlink()
    result = run('token', '--save')
    assert result.exit_code == 0
    assert str(settings.credentials_path()) in result.stdout
    assert settings.load_token() not in result.stdout
    assert registry.authenticate(settings.load_token()).name == 'local'


def test_damaged_credentials_are_set_aside(registry):
    path = settings.credentials_path()
    path.write_bytes(b'{"token": "\xff')
    result = run('token', '--save')
    assert result.exit_code == 0
    assert registry.authenticate(settings.load_token()).name == 'local'
    assert registry.credentials_problem() is None
    assert path.with_name('credentials.json.damaged').read_bytes() == b'{"token": "\xff'


def test_tokens_are_listed_and_revoked(registry):
    token = run('token', '--name', 'laptop', '--days', '1').stdout.strip()
    lines = run('tokens').stdout.splitlines()
    assert [line.split()[1:3] for line in lines] == [['first-start', 'valid'], ['laptop', 'valid']]
    token_id = lines[1].split()[0]
    assert run('revoke', token_id).exit_code == 0
    assert re.search('laptop  revoked .* UTC', run('tokens').stdout)
    assert token not in run('tokens').stdout


def problem(*arguments):
    command = [sys.executable, '-m', 'registry', *arguments]
    result = subprocess.run(command, cwd=Path(registry_package.__file__).parents[1], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, '')
    [sentence] = result.stderr.splitlines()
    return sentence


def test_problems_are_one_sentence(registry):
    assert problem('token', '--account', 'x') == "There is no account 'x': there are: local"
    settings.credentials_path().unlink()
    settings.credentials_path().mkdir()
    assert str(settings.credentials_path()) in problem('token', '--save')
