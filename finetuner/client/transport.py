"""What every way to a service can do, and what all have in common: requests, answers and the errors in them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from finetuner import excepts
from finetuner.client import wire_pb2 as wire
from finetuner.client.answers import Answer

TIMEOUT = 120.0  # seconds for one call; none for a stream
CONNECT_TIMEOUT = 5.0  # seconds
ATTEMPTS = 4  # most calls can be repeated: parts and runs are known by name
MAX_WAIT = 30.0  # seconds that a service may ask us to wait before we try again
ONCE = frozenset(
    {
        '/create_token',
        '/promote',
        '/rollback',
        '/delete_alias',
        '/delete_dataset',
        '/delete_experiments',
        '/delete_run',
        '/delete_runs',
    }
)
"""Endpoints whose calls cannot: when a connection breaks, what was asked for may have been done."""
MAY_BE_DONE = 'it may have been done: look before you ask again'
NOT_DONE = 'Finetuner-Not-Done'
"""A header over HTTP: the gateway answered by itself, and no executor was asked."""
WAYS_OUT = 'start one with `finetuner serve`, or name another with FINETUNER_HOST or finetuner.login(host=...)'


class Unreachable(excepts.FinetunerServerError):
    """No service answers at an address: what was sent reached none, and may be sent to another address."""


class NobodyThere(Unreachable, excepts.UnavailableError):
    """Nothing takes connections at an address: perhaps not yet."""


class Transport(Protocol):
    """A way to a service. Threads may share it."""

    def call(self, endpoint: str, parameters: Mapping[str, Any], docs: bytes = b'', timeout: float = TIMEOUT) -> bytes:
        """Send one request and return the documents of its answer.

        :param parameters: JSON values.
        :param docs: the documents, a serialized `docarray.DocListProto`.
        :param timeout: in seconds.
        :return: a serialized `docarray.DocListProto`.
        :raises Exception: the class of `finetuner.excepts` that the service raised.
        :raises BusyError: there was no room for the request, each time that it was sent.
        :raises UnavailableError: the service, or an executor of it, cannot be reached.
        :raises FinetunerServerError: any other error.
        """

    def stream(self, endpoint: str, tags: Mapping[str, Any]) -> Iterator[Answer]:
        """Send one document with `tags` and yield the documents that the endpoint streams back.

        :raises FinetunerServerError: the stream broke, or streams cannot go this way.
        """

    def close(self) -> None: ...


def make_header(endpoint: str) -> wire.Header:
    return wire.Header(request_id=uuid.uuid4().hex, exec_endpoint=endpoint)


def make_request(endpoint: str, parameters: Mapping[str, Any], docs: bytes) -> wire.DataRequest:
    request = wire.DataRequest(header=make_header(endpoint))
    request.parameters.update(parameters)
    if docs:
        request.data.docs = docs
    return request


def nobody_at(*addresses: str) -> NobodyThere:
    return NobodyThere(f'no service answers at {" or ".join(addresses)}: {WAYS_OUT}', '', 14)


def raise_for(status: wire.Status) -> None:
    """Raise the exception that a service put into the header of its answer."""
    if status.code == 0:
        return
    name, arguments = status.exception.name, list(status.exception.args)
    known = getattr(excepts, name, None)
    message = arguments[0] if arguments else status.description
    if isinstance(known, type) and issubclass(known, Exception):
        raise known(message)
    origin = f'{name or "an error"} in {status.exception.executor or "the service"}; its log says more'
    raise excepts.FinetunerServerError(message, origin, status.code)
