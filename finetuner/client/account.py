"""The account: who we are, our tokens, and what we hold."""

from __future__ import annotations

from typing import Any

from finetuner.client.session import current_session
from finetuner.results import NewToken, TokenInfo, Usage, read_result


def whoami() -> str:
    """The name of the account that our token speaks for.

    :raises AuthenticationError: there is no token, or the service does not know it.
    """
    return str(current_session().request('/whoami').tags['account'])


def usage() -> Usage:
    """How much of the service our account uses, and what it may use."""
    return read_result(Usage, current_session().request('/usage').tags)


def create_token(name: str, days: float | None = None) -> NewToken:
    """Make another token of our account, for another machine or program.

    :param name: what it is for; shown in lists.
    :param days: how long it is valid; None is for ever.
    :return: with the token itself, which is shown this once.
    :raises RegistryError: the name is malformed.
    """
    expiry: dict[str, Any] = {} if days is None else {'days': days}
    return read_result(NewToken, current_session().request('/create_token', name=name, **expiry).tags)


def list_tokens(page: int = 1, size: int = 50) -> list[TokenInfo]:
    """The tokens of our account, those that are revoked or expired among them.

    :param page: from 1.
    :param size: tokens on a page, at most 100.
    """
    found = current_session().request('/tokens', page=page, size=size).tags['items']
    return [read_result(TokenInfo, record) for record in found]


def revoke_token(id: str) -> TokenInfo:
    """Make a token worthless, from now on and for good.

    :param id: of `list_tokens`; not the token itself.
    :raises RegistryError: our account has no such token.
    """
    return read_result(TokenInfo, current_session().request('/revoke_token', id=id).tags)
