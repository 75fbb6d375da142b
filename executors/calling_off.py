"""How what is computed for a caller alone ends when the caller has gone, on the whole way to the executor."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jina.proto import jina_pb2_grpc
from jina.serve.networking.connection_stub import _ConnectionStubs

FOR_CALLER = ('/encode', '/encode_texts')
"""Endpoints that leave nothing but their answer."""
UNDER_WAY: ContextVar[set[asyncio.Future[Any]] | None] = ContextVar('UNDER_WAY', default=None)


@contextmanager
def called_off_with_caller() -> Iterator[None]:
    """Cancel what is still under way at the end, which Jina does not: its tasks go on for a caller who has gone."""
    under_way: set[asyncio.Future[Any]] = set()
    UNDER_WAY.set(under_way)
    try:
        yield
    finally:
        for answer in tuple(under_way):
            answer.cancel()


def watch(endpoint: str, answer: asyncio.Future[Any]) -> None:
    """Have an answer to the caller of this context called off with the caller."""
    if endpoint in FOR_CALLER and (under_way := UNDER_WAY.get()) is not None:
        under_way.add(answer)
        answer.add_done_callback(under_way.discard)


def let_calls_be_cancelled() -> None:
    """Have a call to an executor end when nobody waits for it: Jina leaves it under way."""
    _ConnectionStubs.STUB_MAPPING['jina.JinaSingleDataRequestRPC'] = _Stub


class _Stub:
    def __init__(self, channel: Any):
        self._stub = jina_pb2_grpc.JinaSingleDataRequestRPCStub(channel)

    def process_single_data(self, *args: Any, **kwargs: Any) -> _Call:
        return _Call(self._stub.process_single_data(*args, **kwargs))


class _Call:
    """A call whose metadata are awaited before its answer, which alone would cancel it."""

    def __init__(self, call: Any):
        self._call = call

    def __await__(self) -> Generator[Any, None, Any]:
        return self._call.__await__()

    async def trailing_metadata(self) -> Any:
        try:
            return await self._call.trailing_metadata()
        except asyncio.CancelledError:
            self._call.cancel()
            raise
