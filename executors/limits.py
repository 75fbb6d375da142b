"""What the gateway takes in over HTTP: how large, how much at once, how slowly, how often."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

import h11
from fastapi.exceptions import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from executors.calls import read_token
from executors.errors import refuse
from executors.rate import REQUESTS_AT_ONCE, TOO_MANY_AT_ONCE, Buckets, max_body
from finetuner.client.transport import NOT_DONE

BODY_PATIENCE = 30.0
"""Seconds without a byte after which a body is given up."""
LINGER = 2.0
"""Seconds for which the rest of a refused body is read and thrown away: a client that is cut off while it sends sees
a broken connection and not the answer (RFC 9112, section 9.6)."""
HEADER_PATIENCE = 15.0
"""Seconds that a client may take for the headers of a request."""
MAX_HEADER_BYTES = 64 << 10
ENDING = 'the service ended before it had the answer, and may have done what was asked: ask again'
NEVER_LIMITED = ('/', '/dry_run', '/health/live', '/health/ready')


class Ending:
    """Answers a request that the end of the server cuts off: uvicorn would say that the server is broken."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            if has_begun or scope['type'] != 'http':
                raise
            headers = {'Retry-After': '1', 'Connection': 'close'}
            await refuse(503, ENDING, headers)(scope, receive, send)


class TrailingSlashes:
    """`/api/v1/runs/` is `/api/v1/runs`: clients write both."""

    def __init__(self, app: ASGIApp, prefix: str):
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] == 'http' and scope['path'].startswith(self.prefix) and scope['path'].endswith('/'):
            scope = {**scope, 'path': scope['path'][:-1]}
        await self.app(scope, receive, send)


class BodyLimits:
    """Refuses a body that is too large, that is compressed or that comes too slowly, and any while those of others fill
    the room for bodies.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self.limit = max_body()
        self.room = self.limit * REQUESTS_AT_ONCE
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        body, headers = _Body(self, receive), Headers(scope=scope)
        announced, app = headers.get('content-length') or '0', self.app
        if announced.isdecimal() and int(announced) > self.limit:
            app = refuse(413, self.too_large, {'Connection': 'close'})
        elif (encoding := headers.get('content-encoding', 'identity').strip().lower()) not in ('identity', ''):
            detail = f'the body has the Content-Encoding {encoding[:80]}, which is not read here: send it as it is'
            app = refuse(415, detail, {'Accept-Encoding': 'identity'})
        try:
            await app(scope, body.receive, _Lingering(body, send).send)
        finally:
            self.held -= body.size

    @property
    def too_large(self) -> str:
        return f'the body is larger than {self.limit} bytes: send it in parts'


class _Body:
    """One body on its way in."""

    def __init__(self, limits: BodyLimits, receive: Receive):
        self.limits, self._receive, self.size, self.is_complete = limits, receive, 0, False

    async def receive(self) -> Message:
        if self.is_complete:  # only the end of the connection can follow, and nobody knows when
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), BODY_PATIENCE)
        except TimeoutError as error:
            detail = f'no part of the body has come for {BODY_PATIENCE:g} seconds'
            raise HTTPException(408, detail, {'Connection': 'close'}) from error
        self.is_complete = _is_last(message)
        self._count(len(message.get('body', b'')))
        return message

    def _count(self, size: int) -> None:
        self.size += size
        self.limits.held += size
        if self.size > self.limits.limit:
            raise HTTPException(413, self.limits.too_large, {'Connection': 'close'})
        if self.limits.held > self.limits.room:
            headers = {'Retry-After': '1', NOT_DONE: 'true', 'Connection': 'close'}
            raise HTTPException(503, TOO_MANY_AT_ONCE, headers)

    async def discard(self) -> None:
        """Read what still comes, for `LINGER` seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self.is_complete:
                    message = await self._receive()
                    self.is_complete = _is_last(message)


def _is_last(message: Message) -> bool:
    """Whether no part of a body can follow."""
    return message['type'] != 'http.request' or not message.get('more_body', False)


class _Lingering:
    """An answer that closes the connection, and does so only when the client has sent its body."""

    def __init__(self, body: _Body, send: Send):
        self.body, self._send, self.is_closing = body, send, False

    async def send(self, message: Message) -> None:
        if message['type'] == 'http.response.start':
            self.is_closing = (b'connection', b'close') in message.get('headers', ())
        elif self.is_closing and not self.body.is_complete and not message.get('more_body', False):
            await self._send({**message, 'more_body': True})
            await self.body.discard()
            message = {'type': 'http.response.body', 'body': b''}
        await self._send(message)


class RateLimits:
    """Refuses requests of a caller, known by its token or else its address, that come too fast."""

    def __init__(self, app: ASGIApp, buckets: Buckets):
        self.app, self.buckets = app, buckets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] == 'http' and scope['path'] not in NEVER_LIMITED:
            client = scope.get('client') or ('',)
            token = read_token(Headers(scope=scope).get('authorization', ''))
            wait = self.buckets.take(client[0], token)
            if wait:
                headers = {'Retry-After': str(max(1, math.ceil(wait)))}
                await refuse(429, self.buckets.sentence(wait), headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class PatientProtocol(H11Protocol):
    """HTTP that does not wait for ever for the headers of a request."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_PATIENCE, self._give_up)

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
