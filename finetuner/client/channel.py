"""A kept gRPC channel to a Jina Flow, without Jina."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from time import sleep
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.protobuf.empty_pb2 import Empty

from finetuner import excepts, settings
from finetuner.client import wire_pb2 as wire
from finetuner.client.answers import Answer, encode_tags
from finetuner.client.transport import (
    ATTEMPTS,
    CONNECT_TIMEOUT,
    MAX_WAIT,
    MAY_BE_DONE,
    ONCE,
    TIMEOUT,
    Unreachable,
    make_header,
    make_request,
    nobody_at,
    raise_for,
)

OPTIONS = [
    ('grpc.max_send_message_length', -1),
    ('grpc.max_receive_message_length', -1),
    ('grpc.keepalive_time_ms', 360_000),  # a server cuts off whom it hears more often than each five minutes
    ('grpc.min_reconnect_backoff_ms', int(CONNECT_TIMEOUT * 1000)),  # which is the time to connect, too
    ('grpc.enable_retries', 0),
    # else a new connection waits as long as the one that failed would, where anyone still holds that, such as an error
    ('grpc.use_local_subchannel_pool', 1),
]

_channels: dict[tuple[int, str], Channel] = {}
_lock = threading.Lock()


def open_channel(host: str) -> Channel:
    """The one channel of this process to `host`; a forked child gets its own.

    :param host: `grpc://name:port`, `grpcs://name:port` (TLS; FINETUNER_CA_CERT names a file of certificates to trust)
        or `name:port`; the port defaults to 51000.
    :raises ValueError: the address has another scheme or form, or FINETUNER_CA_CERT cannot be read.
    """
    with _lock:
        key = (os.getpid(), host)
        if key not in _channels:
            _channels[key] = Channel(host)
        return _channels[key]


class Connection:
    """The methods of a Flow that we call."""

    def __init__(self, host: str):
        target, secure = _parse_host(host)
        options = [*OPTIONS, ('grpc.enable_http_proxy', 0)] if settings.is_local(host) else OPTIONS
        if secure:
            authority = settings.ca_certificate()
            credentials = grpc.ssl_channel_credentials(authority.read_bytes() if authority else None)
            self.channel = grpc.secure_channel(target, credentials, options)
        else:
            self.channel = grpc.insecure_channel(target, options)
        self.call = self.channel.unary_unary(
            '/jina.JinaSingleDataRequestRPC/process_single_data',
            request_serializer=wire.DataRequest.SerializeToString,
            response_deserializer=wire.DataRequest.FromString,
        )
        self.stream = self.channel.unary_stream(
            '/jina.JinaSingleDocumentRequestRPC/stream_doc',
            request_serializer=wire.SingleDocumentRequest.SerializeToString,
            response_deserializer=wire.SingleDocumentRequest.FromString,
        )
        self.dry_run = self.channel.unary_unary(
            '/jina.JinaGatewayDryRunRPC/dry_run',
            request_serializer=Empty.SerializeToString,
            response_deserializer=wire.Status.FromString,
        )


class Channel:
    """Calls endpoints of the Flow at `host`. Threads may share it."""

    def __init__(self, host: str):
        self.host = host
        self._connection = Connection(host)

    def call(self, endpoint: str, parameters: Mapping[str, Any], docs: bytes = b'', timeout: float = TIMEOUT) -> bytes:
        request = make_request(endpoint, parameters, docs)
        for attempt in range(1, ATTEMPTS + 1):
            connection = self._connection
            try:
                response = connection.call(request, timeout=timeout)
            except grpc.RpcError as error:
                self._renew(connection, error)
                pause = _pause(error, attempt, endpoint)
                if pause is None or attempt == ATTEMPTS:
                    raise self._describe(error, endpoint, timeout) from None
                sleep(pause)
            else:
                if _was_none_asked(response.header.status) and attempt < ATTEMPTS:
                    sleep(_backoff(attempt))
                    continue
                raise_for(response.header.status)
                return response.data.docs
        raise AssertionError('unreachable')

    def stream(self, endpoint: str, tags: Mapping[str, Any]) -> Iterator[Answer]:
        request = wire.SingleDocumentRequest(header=make_header(endpoint), document=encode_tags(tags))
        request.parameters.update(tags)
        connection = self._connection
        responses = connection.stream(request)
        try:
            for response in responses:
                raise_for(response.header.status)
                yield Answer.from_document(response.document)
        except grpc.RpcError as error:
            self._renew(connection, error)
            raise self._describe(error, endpoint, None) from None
        finally:
            responses.cancel()

    def is_ready(self) -> bool:
        """Whether the Flow and all of its executors can be reached."""
        connection = self._connection
        try:
            return bool(connection.dry_run(Empty(), timeout=5).code == 0)
        except grpc.RpcError as error:
            self._renew(connection, error)
            return False

    def close(self) -> None:
        self._connection.channel.close()
        with _lock:
            _channels.pop((os.getpid(), self.host), None)

    def _renew(self, connection: Connection, error: grpc.RpcError) -> None:
        """Drop a connection that failed: gRPC would wait long before it tried again."""
        if _is_refused(error) and connection is self._connection:
            self._connection = Connection(self.host)

    def _describe(self, error: grpc.RpcError, endpoint: str, timeout: float | None) -> excepts.FinetunerServerError:
        code, details = error.code(), error.details() or ''
        kind = excepts.UnavailableError if code == grpc.StatusCode.UNAVAILABLE else excepts.FinetunerServerError
        if _is_refused(error):
            if 'CERTIFICATE_VERIFY_FAILED' in details:
                hint = 'name the authority that signed it with FINETUNER_CA_CERT, the path of a PEM'
                return excepts.FinetunerServerError(f'the certificate of {self.host} is not trusted', hint)
            return self._no_grpc(code) if 'http1.x server' in details else nobody_at(self.host)
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            message = f'{self.host} did not answer {endpoint} within {timeout:g} seconds'
        elif code == grpc.StatusCode.UNIMPLEMENTED:
            return self._no_grpc(code)
        elif _asked_pause(error) is not None:
            kind, message = excepts.BusyError, f'{self.host} had too many requests'
        else:
            message = f'{self.host} failed in {endpoint}'
        is_refused = code == grpc.StatusCode.RESOURCE_EXHAUSTED  # by the gateway, which had asked no executor
        hint = f'{details}; {MAY_BE_DONE}' if endpoint in ONCE and not is_refused else details
        return kind(message, hint, code.value[0])

    def _no_grpc(self, code: grpc.StatusCode) -> Unreachable:
        message = f'{self.host} answers, but is no Jina Flow with gRPC'
        return Unreachable(message, 'check the port: the HTTP port is for http://name:port', code.value[0])


def _parse_host(host: str) -> tuple[str, bool]:
    """(target of gRPC, whether with TLS)"""
    url = urlsplit(settings.normalize_host(host))
    if url.scheme not in ('grpc', 'grpcs'):
        raise ValueError(
            f'the host {host!r} is no address of gRPC: write grpc://name:port, or grpcs://name:port for TLS'
        )
    return url.netloc, url.scheme == 'grpcs'


def _pause(error: grpc.RpcError, attempt: int, endpoint: str) -> float | None:
    """Seconds until a call may be sent again; None if it must not."""
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:  # and nothing was done
        return _asked_pause(error)
    if error.code() != grpc.StatusCode.UNAVAILABLE or endpoint in ONCE or _is_refused(error):
        return None
    return _backoff(attempt)


def _backoff(attempt: int) -> float:
    return 0.25 * 2**attempt


def _was_none_asked(status: wire.Status) -> bool:
    """Whether the gateway answered by itself that the executor has not come yet."""
    return status.exception.name == excepts.UnavailableError.__name__ and not status.exception.executor


def _asked_pause(error: grpc.RpcError) -> float | None:
    """The seconds that a gateway without room asks for; None from one that refuses what is too large."""
    asked = dict(error.trailing_metadata() or ()).get('retry-after', '')
    return min(float(asked), MAX_WAIT) if asked.isdecimal() else None


def _is_refused(error: grpc.RpcError) -> bool:
    """Whether the very connection failed, rather than one behind the gateway or a call on an open connection."""
    details = error.details() or ''
    return error.code() == grpc.StatusCode.UNAVAILABLE and details.startswith(
        ('failed to connect', 'DNS resolution failed')
    )
