"""Accounts and their tokens. A token is 256 random bits, shown once; the database knows its sha256 alone."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from finetuner.excepts import AuthenticationError, NotFoundError, RegistryError
from registry.database import read_page
from registry.models import AccountRow, TokenRow, now
from registry.names import check_name, known, shorten
from registry.records import Account, Page, Token

HOW_TO_GET_ONE = '`python -m registry token` on the machine of the service prints a new one'


def insert_account(session: Session, name: str) -> Account:
    """A new account.

    :raises sqlalchemy.exc.IntegrityError: the name is taken.
    """
    row = AccountRow(name=check_name('account', name))
    session.add(row)
    session.flush()
    return to_account(row)


def find_account(session: Session, name: str) -> Account:
    """The account of this name.

    :raises NotFoundError: there is none.
    """
    row = session.scalar(select(AccountRow).where(AccountRow.name == name))
    if row is None:
        raise NotFoundError(f'There is no account {name!r}: {known(name, session.scalars(select(AccountRow.name)))}')
    return to_account(row)


def list_accounts(session: Session, page: int, size: int) -> Page[Account]:
    """One page of all accounts, by name."""
    rows, total = read_page(session, select(AccountRow).order_by(AccountRow.name), page, size)
    return Page([to_account(row) for (row,) in rows], total, page, size)


def get_account_row(session: Session, account_id: str) -> AccountRow:
    """
    :raises RegistryError: there is no account of this id.
    """
    row = session.get(AccountRow, account_id)
    if row is None:
        raise NotFoundError(f'There is no account of the id {account_id!r}')
    return row


def lock_account(session: Session, account_id: str) -> AccountRow:
    """The account's row, which nobody else locks until the end of this write. Others may add things of the account.

    :raises RegistryError: there is no account of this id.
    """
    query = select(AccountRow).where(AccountRow.id == account_id).with_for_update(key_share=True)
    row = session.scalar(query.execution_options(populate_existing=True))
    return row if row is not None else get_account_row(session, account_id)


def to_account(row: AccountRow) -> Account:
    return Account(row.id, row.name, row.created_at, row.max_bytes, row.max_runs)


def any_account(session: Session) -> bool:
    return session.scalar(select(AccountRow.id).limit(1)) is not None


def new_token() -> str:
    return secrets.token_urlsafe(32)


def insert_token(session: Session, account_id: str, name: str, token: str, expires_at: datetime | None = None) -> Token:
    """Let `token` speak for the account.

    :raises RegistryError: there is no such account, or the time has passed or has no time zone.
    """
    check_name('token', name)
    get_account_row(session, account_id)
    if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now()):
        raise RegistryError(f'A token cannot expire at {expires_at}: give a time to come, with its time zone')
    row = TokenRow(account_id=account_id, name=name, digest=_digest(token), expires_at=expires_at)
    session.add(row)
    session.flush()
    return _token(row)


def list_tokens(session: Session, account_id: str, page: int, size: int) -> Page[Token]:
    """One page of the account's tokens, the oldest first."""
    query = select(TokenRow).where(TokenRow.account_id == account_id).order_by(TokenRow.created_at, TokenRow.id)
    rows, total = read_page(session, query, page, size)
    return Page([_token(row) for (row,) in rows], total, page, size)


def revoke_token(session: Session, account_id: str, token_id: str) -> Token:
    """Make a token worthless. One that is revoked already stays as it is.

    :raises NotFoundError: the account has no such token.
    """
    owned = (TokenRow.id == token_id, TokenRow.account_id == account_id)
    if session.scalar(select(TokenRow.id).where(*owned)) is None:
        raise NotFoundError(
            f'There is no token of the id {shorten(token_id)}: `finetuner tokens`, or `python -m registry tokens` on '
            'the machine of the service, lists them'
        )
    session.execute(update(TokenRow).where(*owned, TokenRow.revoked_at.is_(None)).values(revoked_at=now()))
    return _token(session.scalars(select(TokenRow).where(*owned)).one())


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
    return to_account(row.account)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors='surrogatepass')).hexdigest()


def _day(time: datetime) -> str:
    return time.strftime('%Y-%m-%d %H:%M UTC')


def _token(row: TokenRow) -> Token:
    return Token(row.id, row.account_id, row.name, row.created_at, row.expires_at, row.revoked_at)
