"""The way to a service over HTTP, where gRPC cannot pass: the same requests and answers, each as the body of a POST."""

from __future__ import annotations

import http.client
import json
import random
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import sleep
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError

from finetuner import settings
from finetuner.client import wire_pb2 as wire
from finetuner.client.answers import Answer
from finetuner.client.transport import (
    ATTEMPTS,
    CONNECT_TIMEOUT,
    MAX_WAIT,
    MAY_BE_DONE,
    NOT_DONE,
    ONCE,
    TIMEOUT,
    Unreachable,
    make_request,
    nobody_at,
    raise_for,
)
from finetuner.excepts import BusyError, FinetunerServerError, UnavailableError

CONTENT_TYPE = 'application/x-protobuf'
TRY_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class HttpChannel:
    """Calls endpoints of the service at `host`, over a kept connection for each thread.

    :param host: `http://name:port` or `https://name:port`, perhaps with a path after it.
    """

    def __init__(self, host: str):
        self.host = host
        url = urlsplit(settings.normalize_host(host))
        if url.scheme not in ('http', 'https'):
            raise ValueError(f'the host {host!r} is no address of HTTP: write http://name:port or https://name:port')
        self._name, self._port, self._path = url.hostname or '', url.port, url.path
        self._tls: ssl.SSLContext | None = None
        if url.scheme == 'https':
            self._tls = ssl.create_default_context(cafile=settings.ca_certificate())
        self._kept = threading.local()

    def call(self, endpoint: str, parameters: Mapping[str, Any], docs: bytes = b'', timeout: float = TIMEOUT) -> bytes:
        body = make_request(endpoint, parameters, docs).SerializeToString()
        if endpoint in ONCE:
            self._drop()  # a connection that was kept may break for its age alone
        attempt = 1
        while True:
            try:
                status, headers, content = self._post(endpoint, body, timeout)
            except (http.client.IncompleteRead, OSError) as error:
                if attempt == ATTEMPTS or endpoint in ONCE:
                    hint = f'{error}; {MAY_BE_DONE}' if endpoint in ONCE else str(error)
                    raise UnavailableError(f'{self.host} broke off {endpoint}', hint) from None
                pause = _backoff(attempt) if attempt > 1 else 0.0  # it may have been kept for too long
            else:
                pause = _asked_pause(headers) or _backoff(attempt)
                is_final = status not in TRY_AGAIN or _may_be_done(endpoint, status, headers)
                if is_final or attempt == ATTEMPTS or pause > MAX_WAIT:
                    return self._read(endpoint, status, headers, content, len(body))
            sleep(pause)
            attempt += 1

    def stream(self, endpoint: str, tags: Mapping[str, Any]) -> Iterator[Answer]:
        raise FinetunerServerError(f'{endpoint} streams, which this client does over gRPC only: ask again and again')

    def close(self) -> None:
        """Close the connection of this thread; those of others end with them."""
        self._drop()

    def _post(self, endpoint: str, body: bytes, timeout: float) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and content of the answer.

        :raises OSError: the connection, which was there, broke: of TLS it may be an `ssl.SSLError`.
        :raises http.client.IncompleteRead: it broke within the answer.
        :raises FinetunerServerError: there is no connection, or no answer in time.
        """
        connection = self._connect()
        connection.sock.settimeout(timeout)
        try:
            connection.request(
                'POST', f'{self._path}{endpoint}', body, {'Content-Type': CONTENT_TYPE, 'Accept': CONTENT_TYPE}
            )
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        except TimeoutError:
            self._drop()
            message = f'{self.host} did not answer {endpoint} within {timeout:g} seconds'
            raise FinetunerServerError(message, MAY_BE_DONE if endpoint in ONCE else '') from None
        except (http.client.HTTPException, OSError) as error:
            self._drop()
            if isinstance(error, OSError | http.client.IncompleteRead):
                raise
            hint = 'check the port: that of gRPC is for grpc://name:port'
            raise Unreachable(f'{self.host} answers, but speaks no HTTP', hint) from None
        except BaseException:  # Ctrl-C between a request and its answer, which the next request would be given
            self._drop()
            raise

    def _connect(self) -> http.client.HTTPConnection:
        """The connection of this thread, made if there is none."""
        connection: http.client.HTTPConnection | None = getattr(self._kept, 'connection', None)
        if connection is not None and connection.sock is not None:
            return connection
        if self._tls:
            connection = http.client.HTTPSConnection(self._name, self._port, timeout=CONNECT_TIMEOUT, context=self._tls)
        else:
            connection = http.client.HTTPConnection(self._name, self._port, timeout=CONNECT_TIMEOUT)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            hint = (
                f'{error.verify_message}: name the authority that signed it with FINETUNER_CA_CERT, the path of a PEM'
            )
            raise FinetunerServerError(f'the certificate of {self.host} is not trusted', hint) from None
        except ssl.SSLError as error:
            raise Unreachable(f'{self.host} speaks no TLS', f'{error.reason}: perhaps it is http://') from None
        except OSError:  # refused, blocked, or the name is not known
            raise nobody_at(self.host) from None
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._kept.connection = connection
        return connection

    def _drop(self) -> None:
        connection = getattr(self._kept, 'connection', None)
        if connection is not None:
            connection.close()
            self._kept.connection = None

    def _read(self, endpoint: str, status: int, headers: http.client.HTTPMessage, content: bytes, sent: int) -> bytes:
        if status != HTTPStatus.OK:
            raise self._describe(endpoint, status, headers, content, sent)
        if headers.get_content_type() != CONTENT_TYPE:
            raise self._stranger()
        try:
            response = wire.DataRequest.FromString(content)
        except DecodeError:
            raise self._stranger() from None
        raise_for(response.header.status)
        return response.data.docs

    def _stranger(self) -> Unreachable:
        return Unreachable(f'{self.host} answers, but is no service of Finetuner', 'check the name and the port', 200)

    def _describe(
        self, endpoint: str, status: int, headers: http.client.HTTPMessage, content: bytes, sent: int
    ) -> FinetunerServerError:
        """The error that an HTTP status is: of the service before it looked into the request, or of what is between."""
        said = _detail(content)
        kind = FinetunerServerError
        match status:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                message, hint = f'{self.host} lets us not in', 'give another token with finetuner.login(token=...)'
            case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:
                message = f'{self.host} knows no {endpoint}'
                hint = 'check the address; a service of an older version has fewer endpoints'
            case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                message = f'{sent} bytes are too many for {self.host}'
                hint = (
                    'its operator sets the limit with FINETUNER_MAX_BODY_BYTES, and a web server before it has its own'
                )
            case HTTPStatus.TOO_MANY_REQUESTS:
                message = f'{self.host} had too many requests'
                pause = _asked_pause(headers)
                kind = BusyError if pause <= MAX_WAIT else kind  # which is for what is over in a moment
                hint = f'try again in {pause:.0f} seconds' if pause else 'try again later'
            case HTTPStatus.SERVICE_UNAVAILABLE | HTTPStatus.BAD_GATEWAY | HTTPStatus.GATEWAY_TIMEOUT:
                kind = kind if status == HTTPStatus.GATEWAY_TIMEOUT else UnavailableError
                message, hint = f'the service at {self.host} does not answer', 'it may be starting: try again later'
            case _ if 300 <= status < 400:  # which we do not follow: the token would go elsewhere
                message = f'{self.host} is elsewhere now'
                hint = f'it names {headers.get("Location", "no place")}: give that as the host'
            case _:
                message, hint = f'{self.host} failed in {endpoint} with the HTTP status {status}', 'its log says more'
        if _may_be_done(endpoint, status, headers):
            hint = MAY_BE_DONE
        return kind(message, f'{said.rstrip(".")}; {hint}' if said else hint, int(status))


def _may_be_done(endpoint: str, status: int, headers: http.client.HTTPMessage) -> bool:
    """Whether a request that must not be repeated may have had its effect, although the answer is an error."""
    return endpoint in ONCE and status >= 500 and NOT_DONE not in headers


def _detail(content: bytes) -> str:
    """What a service of ours says of an error; nothing if it was another that answered."""
    try:
        detail = json.loads(content)['detail']
    except (ValueError, TypeError, KeyError):
        return ''
    return detail if isinstance(detail, str) else ''


def _backoff(attempt: int) -> float:
    """Seconds; not the same for all who were turned away at the same time."""
    return 0.25 * 2**attempt * random.uniform(0.5, 1)


def _asked_pause(headers: http.client.HTTPMessage) -> float:
    """The seconds of `Retry-After`, which may be given as a time, too; 0 without it."""
    value = headers.get('Retry-After', '')
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
