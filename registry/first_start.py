"""The first start: one local account, and a token for it in this user's credentials file."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from finetuner.excepts import AuthenticationError, RegistryError
from finetuner.settings import credentials_path, keep_token, load_token
from registry.accounts import any_account, authenticate, insert_account, insert_token, new_token
from registry.database import Database

LOCAL_ACCOUNT = 'local'
FIRST_TOKEN = 'first-start'
# of our own tokens; shorter ones could be guessed from their hash
ADOPTED_LENGTH = 32


def make_local_account(database: Database) -> None:
    """Make the account, unless there is any account.

    A token that this user has already (of another home, or in `FINETUNER_TOKEN`) is taken up instead of being
    overwritten, so that one credentials file serves every service that this user starts.

    :raises RegistryError: the credentials file cannot be read or written.
    """
    with database.read() as session:
        if any_account(session):
            return
    try:
        with database.write() as session:
            if any_account(session):
                return
            account = insert_account(session, LOCAL_ACCOUNT)
            insert_token(session, account.id, FIRST_TOKEN, _own_token())
    except IntegrityError:
        # another machine was first on the same database
        with database.read() as session:
            if not any_account(session):
                raise


def credentials_problem(database: Database) -> str | None:
    """What is wrong with this user's credentials for this registry, and the way out; None if nothing is."""
    try:
        with database.read() as session:
            authenticate(session, load_token())
    except (AuthenticationError, ValueError) as error:
        return (
            f'{error}. There is no good token in FINETUNER_TOKEN or {credentials_path()}: '
            '`python -m registry token --save` writes a new one into that file'
        )
    return None


def _own_token() -> str:
    try:
        return keep_token(lambda token: isinstance(token, str) and len(token) >= ADOPTED_LENGTH, new_token)
    except (OSError, ValueError) as error:
        raise RegistryError(
            f'The token of the first start cannot be kept in {credentials_path()}: {error}. '
            'Repair or delete the file, or have FINETUNER_CONFIG_DIR name a folder that can be written'
        ) from error
