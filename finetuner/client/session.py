"""Who talks to which service: login, and requests that carry the token."""

from __future__ import annotations

import functools
import getpass
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from finetuner import settings
from finetuner.excepts import AuthenticationError, FinetunerServerError

if TYPE_CHECKING:
    from finetuner.client.answers import Answer

P = ParamSpec('P')
T = TypeVar('T')

_current: Session | None = None
stopped: ContextVar[threading.Event | None] = ContextVar('stopped', default=None)
"""Set for what is done on behalf of a task that was cancelled: it ends before its next request."""


@dataclass(frozen=True)
class Session:
    """One service, and the token that it knows us by."""

    host: str
    token: str = field(repr=False)

    def request(self, endpoint: str, docs: bytes = b'', **parameters: Any) -> Answer:
        """One request whose answer is one document.

        :param docs: a serialized `docarray.DocListProto`.
        :param parameters: JSON values; the token is added.
        :raises Exception: as the service does, see :mod:`finetuner.excepts`.
        """
        from finetuner.client.answers import read_answers

        answers = read_answers(self.request_bytes(endpoint, docs, **parameters))
        if len(answers) != 1:
            raise FinetunerServerError(f'{self.host} answered {endpoint} with {len(answers)} documents, not with one')
        return answers[0]

    def request_bytes(self, endpoint: str, docs: bytes = b'', **parameters: Any) -> bytes:
        """The same, with the answer as it came: a serialized `docarray.DocListProto`."""
        from finetuner.client.reaching import open_transport

        if (event := stopped.get()) is not None and event.is_set():
            raise CancelledError
        return open_transport(self.host).call(endpoint, {'token': self.token, **parameters}, docs)

    def stream(self, endpoint: str, **tags: Any) -> Iterator[Answer]:
        """The documents of a streaming endpoint, as they come.

        :param tags: of the one document that is sent, beside the token.
        :raises FinetunerServerError: the stream broke, or the service is reached over HTTP, where we do not stream.
        """
        from finetuner.client.reaching import open_transport

        return open_transport(self.host).stream(endpoint, {'token': self.token, **tags})


def login(
    force: bool = False, interactive: bool | None = None, host: str | None = None, token: str | None = None
) -> None:
    """Choose the service and prove who we are. What was given is kept for later sessions, in the credentials file.

    On the machine of the service no arguments are needed: its first start wrote the token.

    :param force: ask for a token (or take `token`) although one is known.
    :param interactive: whether to ask for a token where none is known; None asks in a terminal only.
    :param host: the service, `grpc://name:port` or `http://name:port`, with TLS `grpcs://` or `https://`. Several with
        commas between them are tried in their order; without a scheme gRPC is tried, and then HTTP. Default
        `FINETUNER_HOST`, the last login's, or `grpc://localhost:51000`.
    :param token: default `FINETUNER_TOKEN`, `JINA_AUTH_TOKEN` or the credentials file.
    :raises AuthenticationError: there is no token, or the service does not know it.
    :raises FinetunerServerError: the service cannot be reached.
    :raises ValueError: the host is not an address.
    """
    global _current
    chosen = host or settings.host()
    settings.addresses(chosen)
    known = token or (None if force else settings.load_token(chosen))
    asked = None
    if known is None:
        ask = sys.stdin.isatty() if interactive is None else interactive
        asked = getpass.getpass(f'Token for {chosen}: ').strip() if ask else None
        known = asked or settings.load_token(chosen)
    if not known:
        raise AuthenticationError(_no_token(chosen))
    session = Session(chosen, known)
    try:
        session.request('/whoami')
    except AuthenticationError as error:
        reason = str(error).rstrip('.')
        origin = '' if known in (token, asked) else f' in {_variable() or settings.credentials_path()}'
        raise AuthenticationError(f'{chosen} refused the token{origin}: {reason}') from None
    if known in (token, asked):
        settings.save_token(known, chosen)
    if host:
        settings.save_host(host)
    _current = session


def logout() -> None:
    """Forget the token of the service that we talk to: here, and in the credentials file. The service still knows it:
    `revoke_token` makes it worthless.

    :raises AuthenticationError: the token stands in an environment variable, which is not ours to remove.
    """
    global _current
    host = _current.host if _current else settings.host()
    _current = None
    settings.forget_token(host)
    if variable := _variable():
        raise AuthenticationError(f'the token in {variable} is still used: unset it to log out')


def login_required(function: Callable[P, T]) -> Callable[P, T]:
    """Have a function raise AuthenticationError, with the way to a token, if it is called where none is known."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        current_session()
        return function(*args, **kwargs)

    return checked


def current_session(token: str | None = None) -> Session:
    """The session of the last `login`, or one with the token that lies ready.

    :param token: to be used in place of these.
    :raises AuthenticationError: there was no login, and no token is found.
    """
    if _current is not None:
        return Session(_current.host, token or _current.token)
    host = settings.host()
    token = token or settings.load_token(host)
    if not token:
        raise AuthenticationError(_no_token(host))
    return Session(host, token)


def find_service(host: str | None = None, token: str | None = None) -> tuple[str, str | None]:
    """A service, and the token that it knows us by if we have one, for what may need none.

    :param host: default that of the last login, `FINETUNER_HOST` or `grpc://localhost:51000`.
    :param token: to be used in place of the one of the login, the environment or the credentials file.
    """
    if _current is not None and host in (None, _current.host):
        return _current.host, token or _current.token
    host = host or settings.host()
    return host, token or settings.load_token(host)


def get_token() -> str:
    """The token that calls are made with, for `uses_with={'artifact': ..., 'token': finetuner.get_token()}`.

    :raises AuthenticationError: there was no login, and no token is found.
    """
    return current_session().token


def _variable() -> str | None:
    """The environment variable that holds a token."""
    return next((name for name in settings.TOKEN_VARIABLES if settings.secret(name)), None)


def _no_token(host: str) -> str:
    if settings.is_local(host):
        return (
            f'there is no token for {host}: start a service on this machine with `finetuner serve`, whose very first '
            'start writes one; if it has accounts already, as after a restore, `python -m registry token --save` does; '
            'or give one that you have: finetuner.login(token=...), or `finetuner login --token -`'
        )
    return f'there is no token for {host}: call finetuner.login(host={host!r}, token=...) or set FINETUNER_TOKEN'
