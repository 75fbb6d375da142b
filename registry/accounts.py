"""Accounts and their tokens. A token is 256 random bits, shown once; the database knows its sha256 alone."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from finetuner.excepts import AuthenticationError, NotFoundError, RegistryError
from registry.models import AccountRow, TokenRow, now
from registry.names import check_name, known
from registry.records import Account, Token

HOW_TO_GET_ONE = '`python -m registry token` on the machine of the service prints a new one'


def insert_account(session: Session, name: str) -> Account:
    """A new account.

    :raises sqlalchemy.exc.IntegrityError: the name is taken.
    """
    row = AccountRow(name=check_name('account', name))
    session.add(row)
    session.flush()
    return _account(row)


def find_account(session: Session, name: str) -> Account:
    """The account of this name.

    :raises NotFoundError: there is none.
    """
    row = session.scalar(select(AccountRow).where(AccountRow.name == name))
    if row is None:
        raise NotFoundError(f'There is no account {name!r}: {known(name, session.scalars(select(AccountRow.name)))}')
    return _account(row)


def any_account(session: Session) -> bool:
    return session.scalar(select(AccountRow.id).limit(1)) is not None


def new_token() -> str:
    return secrets.token_urlsafe(32)


def insert_token(session: Session, account_id: str, name: str, token: str, expires_at: datetime | None = None) -> None:
    """Let `token` speak for the account.

    :raises RegistryError: there is no such account, or the time has passed or has no time zone.
    """
    check_name('token', name)
    if session.get(AccountRow, account_id) is None:
        raise NotFoundError(f'There is no account of the id {account_id!r}')
    if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now()):
        raise RegistryError(f'A token cannot expire at {expires_at}: give a time to come, with its time zone')
    session.add(TokenRow(account_id=account_id, name=name, digest=_digest(token), expires_at=expires_at))


def list_tokens(session: Session, account_id: str) -> list[Token]:
    rows = session.scalars(
        select(TokenRow).where(TokenRow.account_id == account_id).order_by(TokenRow.created_at, TokenRow.id)
    )
    return [_token(row) for row in rows]


def revoke_token(session: Session, account_id: str, token_id: str) -> None:
    """Make a token worthless. One that is revoked already stays revoked.

    :raises NotFoundError: the account has no such token.
    """
    owned = (TokenRow.id == token_id, TokenRow.account_id == account_id)
    if session.scalar(select(TokenRow.id).where(*owned)) is None:
        raise NotFoundError(f'There is no token of the id {token_id!r}: `python -m registry tokens` lists them')
    session.execute(update(TokenRow).where(*owned, TokenRow.revoked_at.is_(None)).values(revoked_at=now()))


def authenticate(session: Session, token: str | None) -> Account:
    """The account that a token speaks for.

    :raises AuthenticationError: the token is missing, unknown, revoked or expired.
    """
    if not token:
        raise AuthenticationError('A token is needed: call finetuner.login(), or set FINETUNER_TOKEN')
    row = None
    if isinstance(token, str):
        row = session.scalar(select(TokenRow).where(TokenRow.digest == _digest(token)))
    if row is None:
        raise AuthenticationError(f'The token is not known to this service. {HOW_TO_GET_ONE}')
    if row.revoked_at is not None:
        raise AuthenticationError(f'The token {row.name!r} was revoked on {_day(row.revoked_at)}. {HOW_TO_GET_ONE}')
    if row.expires_at is not None and row.expires_at <= now():
        raise AuthenticationError(f'The token {row.name!r} expired on {_day(row.expires_at)}. {HOW_TO_GET_ONE}')
    return _account(row.account)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors='surrogatepass')).hexdigest()


def _day(time: datetime) -> str:
    return time.strftime('%Y-%m-%d %H:%M UTC')


def _account(row: AccountRow) -> Account:
    return Account(row.id, row.name, row.created_at)


def _token(row: TokenRow) -> Token:
    return Token(row.id, row.account_id, row.name, row.created_at, row.expires_at, row.revoked_at)
