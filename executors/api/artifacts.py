"""Artifacts: what a run left, listed and downloaded in pieces."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header, Query, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from executors.api.digests import write_digest
from executors.api.names import ArtifactName, ExperimentName, RunName
from executors.api.request import Call, Caller, Paged, Paging, make_router
from executors.openapi import CONFLICT, NOT_FOUND

router, downloads = make_router('artifacts'), make_router('artifacts')

PIECE = 4 << 20
"""Bytes that are asked of the executor at once, and held in memory."""
RANGE = re.compile(r'bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})', re.IGNORECASE)
ZIP = {'application/zip': {'schema': {'type': 'string', 'format': 'binary'}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {'description': 'The zip file.', 'content': ZIP},
    206: {'description': 'The bytes that were asked for.', 'content': ZIP},
    304: {'description': 'It is what the client has.'},
    404: {'description': NOT_FOUND},
    409: {'description': CONFLICT},
    416: {'description': 'The file has no such bytes.'},
}
RangeHeader = Annotated[str | None, Header(description='Such as `bytes=1000-`: one range.')]


class Artifact(BaseModel):
    """A stored artifact. `aliases` are those that name it now."""

    id: str
    name: str
    experiment_name: str
    run_name: str
    size: int
    sha256: str
    public: bool
    created_at: str
    aliases: list[str]


class Zip(StreamingResponse):
    media_type = 'application/zip'


@dataclass(frozen=True)
class Stored:
    """What is known of an artifact before it is read."""

    id: str
    name: str
    size: int
    sha256: str

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'


@router.get('/artifacts', operation_id='list_artifacts')
async def list_all(paging: Annotated[Paging, Query()], call: Call) -> Paged[Artifact]:
    return Paged[Artifact](**await call.tags('/artifacts', **paging.model_dump()))


@downloads.head('/artifacts/{artifact}', operation_id='head_artifact', response_class=Zip, responses=RESPONSES)
@downloads.get('/artifacts/{artifact}', operation_id='get_artifact', response_class=Zip, responses=RESPONSES)
async def download(
    artifact: ArtifactName,
    call: Call,
    request: Request,
    range: RangeHeader = None,
    if_range: Annotated[
        str | None, Header(description='An ETag: the range is of that file, or else all is sent.')
    ] = None,
    if_none_match: Annotated[str | None, Header(description='An ETag: nothing is sent if it is that file.')] = None,
) -> Response:
    """The zip file of an artifact by its id, or by an alias. A download that broke off goes on with a range."""
    if '@' in artifact:
        artifact = (await call.tags('/alias', alias=artifact))['artifact_id']
    return await _send(call, artifact, request)


@downloads.head(
    '/artifacts/{experiment}/{run}', operation_id='head_artifact_of_run', response_class=Zip, responses=RESPONSES
)
@downloads.get(
    '/artifacts/{experiment}/{run}', operation_id='get_artifact_of_run', response_class=Zip, responses=RESPONSES
)
async def download_of_run(
    experiment: ExperimentName,
    run: RunName,
    call: Call,
    request: Request,
    range: RangeHeader = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The zip file of the artifact that a run left."""
    found = await call.tags('/status', experiment_name=experiment, run_name=run)
    return await _send(call, found['artifact_id'], request)


async def _send(call: Caller, artifact_id: str, request: Request) -> Response:
    tags = await call.tags('/artifact', artifact_id=artifact_id, offset=0, length=1)
    stored = Stored(artifact_id, str(tags['name']), int(tags['size']), str(tags['sha256']))
    headers = {
        'ETag': stored.etag,
        'Accept-Ranges': 'bytes',
        'Content-Disposition': f'attachment; filename="{stored.name}.zip"',
        'Repr-Digest': write_digest(stored.sha256),
        'Cache-Control': 'private, no-cache',
    }
    if _names(request.headers.get('if-none-match'), stored.etag):
        return Response(status_code=304, headers=headers)
    start, end, is_part = 0, stored.size, False
    if request.method == 'GET' and request.headers.get('if-range', stored.etag) == stored.etag:
        start, end, is_part = _read_range(request.headers.get('range'), stored.size)
    headers['Content-Length'] = str(end - start)
    if is_part:
        headers['Content-Range'] = f'bytes {start}-{end - 1}/{stored.size}'
    if request.method == 'HEAD':
        return Response(headers=headers, media_type='application/zip')
    return Zip(_pieces(call, stored, start, end), 206 if is_part else 200, headers)


def _read_range(given: str | None, size: int) -> tuple[int, int, bool]:
    """(first byte, byte after the last, whether that is a part). What is no single range is ignored, as it should be.

    :raises HTTPException: 416: there are no such bytes.
    """
    match = RANGE.fullmatch(given.strip()) if given else None
    if match is None or match.groups() == ('', ''):
        return 0, size, False
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < int(first):
            return 0, size, False
    if start >= size:
        detail = f'the artifact has {size} bytes, there are none from byte {start} on'
        raise HTTPException(416, detail, {'Content-Range': f'bytes */{size}'})
    return start, end, True


def _names(header: str | None, etag: str) -> bool:
    given = [entry.strip().removeprefix('W/') for entry in (header or '').split(',')]
    return etag in given or '*' in given


async def _pieces(call: Caller, stored: Stored, start: int, end: int) -> AsyncIterator[bytes]:
    while start < end:
        parameters = {'artifact_id': stored.id, 'offset': start, 'length': min(PIECE, end - start)}
        piece = (await call.document('/artifact', parameters)).blob
        if not piece:
            raise EOFError(f'the artifact {stored.id} ends at byte {start} of {stored.size}')
        yield bytes(piece)
        start += len(piece)
