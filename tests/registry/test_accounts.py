import stat
from datetime import UTC, datetime, timedelta

import pytest

from finetuner import settings
from finetuner.excepts import AuthenticationError, RegistryError
from registry import Registry

pytestmark = pytest.mark.usefixtures('database')


def test_the_first_start_makes_a_local_account_whose_token_the_user_has(registry):
    account = registry.authenticate(settings.load_token())
    assert account == registry.get_account()
    assert account.name == 'local'
    assert stat.S_IMODE(settings.credentials_path().stat().st_mode) == 0o600
    assert registry.credentials_problem() is None


def test_later_starts_change_nothing(registry):
    token = settings.load_token()
    with Registry.open() as again:
        assert again.get_account() == registry.get_account()
        assert again.list_tokens(again.get_account().id).total == 1
    assert settings.load_token() == token


def test_every_home_of_a_user_takes_the_token_that_the_user_has(registry, empty_database, tmp_path):
    token = settings.load_token()
    with Registry.open(tmp_path / 'second home', empty_database) as second:
        assert second.authenticate(token).id != registry.authenticate(token).id
    assert settings.load_token() == token


def test_a_token_in_the_environment_is_taken_at_the_first_start(monkeypatch):
    monkeypatch.setenv('FINETUNER_TOKEN', 'a-token-that-somebody-made-for-a-container')
    with Registry.open() as registry:
        assert registry.authenticate('a-token-that-somebody-made-for-a-container').name == 'local'
    assert not settings.credentials_path().exists()


def test_a_short_token_in_the_environment_is_not_taken(monkeypatch):
    monkeypatch.setenv('FINETUNER_TOKEN', 'secret')
    with Registry.open() as registry:
        with pytest.raises(AuthenticationError):
            registry.authenticate('secret')
        assert 'The token is not known to this service' in registry.credentials_problem()
        monkeypatch.delenv('FINETUNER_TOKEN')
        assert registry.authenticate(settings.load_token()).name == 'local'


@pytest.mark.parametrize('loss', ['missing', 'stale', 'damaged'])
def test_lost_credentials_are_told_and_replaced(registry, loss):
    good = settings.load_token()
    if loss == 'missing':
        settings.credentials_path().unlink()
    elif loss == 'stale':
        settings.save_token('x' * 43)
    else:
        settings.credentials_path().write_text('{')
    with Registry.open() as again:
        assert 'registry token' in again.credentials_problem()
        assert again.authenticate(good).name == 'local'
        if loss == 'damaged':
            settings.credentials_path().unlink()
        settings.save_token(again.create_token(again.get_account().id, 'second'))
        assert again.credentials_problem() is None


def test_credentials_that_cannot_be_kept_stop_the_first_start_alone(monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('FINETUNER_CONFIG_DIR', str(tmp_path / 'file' / 'config'))
    with pytest.raises(RegistryError, match='The token of the first start cannot be kept in .*FINETUNER_CONFIG_DIR'):
        Registry.open()
    monkeypatch.setenv('FINETUNER_CONFIG_DIR', str(tmp_path / 'config'))
    with Registry.open() as registry:
        assert registry.authenticate(settings.load_token()).name == 'local'


@pytest.mark.parametrize('token', [None, ''])
def test_a_missing_token(registry, token):
    with pytest.raises(AuthenticationError, match='^A token is needed: call finetuner.login'):
        registry.authenticate(token)


@pytest.mark.parametrize('token', ['wrong', 'ü', '\ud800', "' OR 1=1 --", 'x' * 100_000, 42, b'bytes'])
def test_an_unknown_token(registry, token):
    with pytest.raises(AuthenticationError, match='^The token is not known to this service'):
        registry.authenticate(token)


def test_a_revoked_token(registry, account):
    token = registry.create_token(account, 'laptop')
    assert registry.authenticate(token).id == account
    [_, laptop] = registry.list_tokens(account).items
    assert laptop.name == 'laptop'
    registry.revoke_token(account, laptop.id)
    with pytest.raises(AuthenticationError, match="^The token 'laptop' was revoked on .* UTC"):
        registry.authenticate(token)
    revoked_at = registry.list_tokens(account).items[1].revoked_at
    registry.revoke_token(account, laptop.id)
    assert registry.list_tokens(account).items[1].revoked_at == revoked_at
    assert registry.authenticate(settings.load_token()).id == account


def test_an_expired_token(registry, account):
    token = registry.create_token(account, 'brief', datetime.now(UTC) + timedelta(seconds=0.2))
    while datetime.now(UTC) < registry.list_tokens(account).items[1].expires_at:
        pass
    with pytest.raises(AuthenticationError, match="^The token 'brief' expired on .* UTC"):
        registry.authenticate(token)


@pytest.mark.parametrize('expires_at', [datetime(2020, 1, 1, tzinfo=UTC), datetime(2999, 1, 1)])
def test_a_token_that_is_born_expired_is_refused(registry, account, expires_at):
    with pytest.raises(RegistryError, match='A token cannot expire at'):
        registry.create_token(account, 'laptop', expires_at)


def test_tokens_belong_to_their_account(registry, account):
    other = registry.create_account('other')
    token = registry.create_token(other.id, 'laptop')
    assert registry.authenticate(token) == other
    [laptop] = registry.list_tokens(other.id).items
    with pytest.raises(RegistryError, match='There is no token of the id'):
        registry.revoke_token(account, laptop.id)
    assert registry.authenticate(token) == other


def test_accounts_have_names_of_their_own(registry):
    registry.create_account('other')
    with pytest.raises(RegistryError, match="There is an account 'other' already"):
        registry.create_account('other')
    with pytest.raises(RegistryError, match='is not a valid account name'):
        registry.create_account('../other')
    with pytest.raises(RegistryError, match="There is no account 'othr': similar names: other"):
        registry.get_account('othr')
    with pytest.raises(RegistryError, match='There is no account of the id'):
        registry.create_token('f' * 24, 'laptop')


def test_tokens_are_nowhere_in_the_home_and_the_database(registry, account, dump):
    tokens = [settings.load_token(), registry.create_token(account, 'laptop')]
    files = [path for path in registry.home.rglob('*') if path.is_file()]
    assert any(path.name == 'registry.db-wal' for path in files) == registry.database.is_sqlite
    content = b''.join(path.read_bytes() for path in files) + repr(dump()).encode()
    assert b'laptop' in content
    assert not any(token.encode() in content for token in tokens)


def test_the_home_is_closed_to_others(registry):
    assert stat.S_IMODE(registry.home.stat().st_mode) == 0o700
