"""The log of a run, as text and as it grows."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Header, Query
from fastapi.exceptions import HTTPException
from fastapi.responses import StreamingResponse

from executors.api.names import ExperimentName, RunName
from executors.api.request import Call, Caller, make_router
from executors.openapi import NOT_FOUND
from executors.parameters import INT53
from finetuner.documents import Document
from finetuner.excepts import FinetunerServerError

router = make_router('runs')
SILENCE = 15.0
"""Seconds after which a stream without news says that it lives."""
LINE_END = re.compile(rb'\r\n|\n|\r')
EVENTS = {
    'content': {'text/event-stream': {'schema': {'type': 'string'}}},
    'description': 'Server-sent events: a line of the log is the `data` of each, its `id` where the next one begins.',
}
TEXT = {'content': {'text/plain': {'schema': {'type': 'string'}}}, 'description': 'The log.'}
MISSING: dict[int | str, dict[str, Any]] = {404: {'description': NOT_FOUND}}
Offset = Annotated[int, Query(ge=0, le=INT53, description='Bytes of the log that have been seen.')]


class PlainText(StreamingResponse):
    media_type = 'text/plain'


class Events(StreamingResponse):
    media_type = 'text/event-stream'


@router.get(
    '/experiments/{experiment}/runs/{run}/logs',
    operation_id='get_run_logs',
    response_class=PlainText,
    responses={**MISSING, 200: TEXT},
)
async def get_logs(experiment: ExperimentName, run: RunName, call: Call, offset: Offset = 0) -> PlainText:
    """The log as far as it goes. It is empty while the run waits."""
    parameters = {'experiment_name': experiment, 'run_name': run}
    first = await call.document('/logs', {**parameters, 'offset': offset})
    return PlainText(_pieces(call, parameters, first))


async def _pieces(call: Caller, parameters: dict[str, Any], piece: Document) -> AsyncIterator[str]:
    while piece.text:
        yield piece.text
        piece = await call.document('/logs', {**parameters, 'offset': (piece.tags or {})['offset']})


@router.get(
    '/experiments/{experiment}/runs/{run}/logstream',
    operation_id='stream_run_logs',
    response_class=Events,
    responses={**MISSING, 200: EVENTS},
)
async def stream_logs(
    experiment: ExperimentName,
    run: RunName,
    call: Call,
    offset: Offset = 0,
    last_event_id: Annotated[str | None, Header(description='Where a stream that broke off goes on.')] = None,
) -> Events:
    """The log line by line, until the run has ended."""
    if last_event_id:
        if not re.fullmatch(r'[0-9]{1,15}', last_event_id):
            raise HTTPException(422, f"'Last-Event-ID' is no number of bytes: {last_event_id[:80]!r}")
        offset = int(last_event_id)
    parameters = {'experiment_name': experiment, 'run_name': run, 'offset': offset}
    pieces = await call.stream('/logstream', parameters)
    return Events(_alive(_lines(pieces)), headers={'Cache-Control': 'no-store', 'X-Accel-Buffering': 'no'})


async def _lines(pieces: AsyncIterator[Document]) -> AsyncIterator[str]:
    """An event for every line. Without names of events: Jina's client takes those for lines, too."""
    rest = b''
    try:
        async for piece in pieces:
            tags = piece.tags or {}
            log = rest + (piece.blob or (piece.text or '').encode())
            position = int(tags['offset']) - len(log)
            *lines, (rest, _) = _split(log)
            for line, end in lines:
                position += len(line + end)
                yield f'id: {position}\ndata: {line.decode(errors="replace")}\n\n'
    except FinetunerServerError as error:
        yield f'event: error\ndata: {" ".join(str(error).split())}\n\n'
        return
    if rest:
        yield f'data: {rest.decode(errors="replace")}\n\n'


def _split(log: bytes) -> list[tuple[bytes, bytes]]:
    """The lines with their ends; the last one has none, and may be empty. A return at the end may be half an end."""
    found, position = [], 0
    for match in LINE_END.finditer(log):
        if match.group() == b'\r' and match.end() == len(log):
            break
        found.append((log[position : match.start()], match.group()))
        position = match.end()
    return [*found, (log[position:], b'')]


async def _alive(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The events, and a comment wherever there is none for a while, so that nobody in between cuts the line."""
    waiting: asyncio.Future[str | None] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(events, None))
            done, _ = await asyncio.wait([waiting], timeout=SILENCE)
            if not done:
                yield ': \n\n'
                continue
            event, waiting = waiting.result(), None
            if event is None:
                return
            yield event
    finally:
        if waiting is not None:
            waiting.cancel()
