import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import registry as registry_package
from finetuner import settings
from finetuner.excepts import RegistryError
from registry import Registry
from registry.__main__ import app
from registry.records import Stored


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
    with pytest.raises(
        RegistryError, match="no token of the id 'x': `finetuner tokens`, or `python -m registry tokens`"
    ):
        registry.revoke_token(registry.get_account().id, 'x')
    assert token not in run('tokens').stdout


def test_accounts_have_quotas_and_show_what_they_use(registry, documents):
    assert 'python -m registry token --account support' in run('account', 'support').stdout
    assert [line.split()[1] for line in run('accounts').stdout.splitlines()] == ['local', 'support']
    assert run('quota', 'support', '--bytes', '10GB', '--runs', '2').stdout == 'support: 10.0GB, 2 runs at work\n'
    support = registry.get_account('support')
    assert (support.max_bytes, support.max_runs) == (10_000_000_000, 2)
    assert run('quota', 'support', '--runs', 'none').stdout == 'support: 10.0GB, any number of runs at work\n'
    assert registry.authenticate(run('token', '--account', 'support').stdout.strip()) == registry.get_account('support')
    registry.append_documents(support.id, 'intents', documents(10))
    shown = CliRunner(env={'COLUMNS': '200'}).invoke(app, ['usage']).stdout
    assert re.search(r'support *1: [45]\.\d+?KB *0: 0B *10.0GB *0: 0B *0: 0B', shown)


def test_what_accounts_use_fits_into_80_columns(registry, monkeypatch):
    registry.create_account('support-of-the-northern-shops')
    usage = registry.usage(registry.get_account().id)
    kind = Stored(1234, 584_800_000_000)
    busy = replace(
        usage, datasets=kind, artifacts=kind, checkpoints=kind, search_items=kind, waiting=120, at_work=12, runs=1234
    )
    monkeypatch.setattr(Registry, 'usage', lambda registry, account_id: busy)
    shown = CliRunner(env={'COLUMNS': '80'}).invoke(app, ['usage']).stdout
    assert '…' not in shown and max(map(len, shown.splitlines())) <= 80
    words = shown.split()
    for word in ('account', 'artifacts', 'checkpoints', 'search', 'waiting', '584.8GB', '120', '1234'):
        assert word in words


@pytest.mark.parametrize('days', ['0', '-1', 'nan', '1e9'])
def test_a_token_is_valid_for_some_days(registry, days):
    result = run('token', '--days', days)
    assert isinstance(result.exception, ValueError)
    assert re.fullmatch('--days is .*: give a number above 0, at most 36500', str(result.exception))


@pytest.mark.parametrize('arguments', [('--bytes', 'much'), ('--runs', '-1'), ('--runs', '1.5'), ('--bytes', '-5GB')])
def test_a_quota_that_makes_no_sense_is_refused(registry, arguments):
    result = run('quota', 'local', *arguments)
    assert isinstance(result.exception, ValueError) and registry.get_account().max_bytes is None


def test_long_lists_have_pages(registry):
    for index in range(60):
        registry.create_account(f'account-{index:02}')
    first, second = run('accounts'), run('accounts', '--page', '2')
    assert 'page 1 of 2' in first.stderr
    assert (len(first.stdout.splitlines()), len(second.stdout.splitlines())) == (50, 11)


def test_an_account_is_deleted_when_that_is_confirmed(registry, documents):
    support = registry.create_account('support')
    registry.append_documents(support.id, 'intents', documents(10))
    asked = CliRunner().invoke(app, ['delete-account', 'support'], input='n\n')
    assert asked.exit_code == 1 and str(registry.database.engine.url) in asked.output
    assert re.search(r"Delete the account 'support' .* with 1 data sets \([45]\.\d+?KB\), 0 artifacts", asked.output)
    assert registry.list_datasets(support.id).total == 1
    assert run('delete-account', 'support').exit_code == 1, 'nobody is there who could be asked'
    assert run('delete-account', 'support', '--yes').stdout.startswith("The account 'support' is deleted, with 1 data")
    assert [found.name for found in registry.list_accounts().items] == ['local']


CHANGES = [
    ('token',),
    ('account', 'support'),
    ('quota', 'local'),
    ('revoke', 'x'),
    ('delete-account', 'local', '--yes'),
]
LOOKS = [('tokens',), ('accounts',), ('usage',), ('backup', 'backup')]


@pytest.mark.parametrize('arguments', [*CHANGES, *LOOKS])
def test_no_registry_is_made_where_there_is_none(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    result = run(*arguments)
    assert isinstance(result.exception, RegistryError)
    for told in (str(tmp_path / 'home' / 'registry.db'), 'FINETUNER_HOME and FINETUNER_DATABASE_URL must be those of'):
        assert told in str(result.exception)
    assert sorted(tmp_path.rglob('*')) == before


def test_a_restore_from_nowhere_leaves_nothing(tmp_path):
    before = sorted(tmp_path.rglob('*'))
    result = run('restore', str(tmp_path / 'nope'))
    assert isinstance(result.exception, RegistryError) and 'There is no backup in' in str(result.exception)
    assert sorted(tmp_path.rglob('*')) == before


def test_a_database_without_a_registry_is_told(empty_database, monkeypatch):
    monkeypatch.setenv('FINETUNER_DATABASE_URL', empty_database)
    with pytest.raises(RegistryError, match='There is no registry in the database'):
        Registry.open_existing()
    Registry.open().close()
    Registry.open_existing().close()


def test_what_was_changed_is_told_beside_the_output(registry):
    place = f'Registry: {registry.database.engine.url}\n'
    assert run('token').stderr == place
    assert run('account', 'support').stderr == place
    assert run('quota', 'support', '--runs', '1').stderr == place
    assert run('accounts').stderr == ''


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
