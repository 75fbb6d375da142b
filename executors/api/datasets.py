"""Data sets: sent in parts, each a file, and each all or nothing."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Path, Query, Request
from fastapi.exceptions import HTTPException
from pydantic import BaseModel

from executors.api.digests import check_digest
from executors.api.names import DatasetName
from executors.api.request import Call, Paged, Paging, make_router
from executors.openapi import CONFLICT, NOT_FOUND
from executors.parameters import INT32
from executors.patterns import SHA256
from executors.strict_json import load_json
from finetuner.documents import Document

router, uploads = make_router('datasets'), make_router('datasets')
MISSING: dict[int | str, dict[str, Any]] = {404: {'description': NOT_FOUND}}

Format = Literal['csv', 'jsonl', 'parquet', 'arrow']
MEDIA_TYPES: dict[str, Format] = {
    'text/csv': 'csv',
    'application/csv': 'csv',
    'text/tab-separated-values': 'csv',
    'application/jsonl': 'jsonl',
    'application/x-ndjson': 'jsonl',
    'application/x-jsonlines': 'jsonl',
    'application/vnd.apache.parquet': 'parquet',
    'application/x-parquet': 'parquet',
    'application/vnd.apache.arrow.file': 'arrow',
    'application/vnd.apache.arrow.stream': 'arrow',
}
FILE = {'requestBody': {'required': True, 'content': {}}}
FILE['requestBody']['content'] = {
    media_type: {'schema': {'type': 'string', 'format': 'binary'}}
    for media_type in [*MEDIA_TYPES, 'application/octet-stream']
}


class DatasetSummary(BaseModel):
    """A data set, summed up over its parts. The same documents in the same parts give the same `digest`."""

    name: str
    rows: int
    size: int
    digest: str
    shape: str
    modalities: list[str]
    labelled: bool
    scored: bool


class ListedDataset(DatasetSummary):
    created_at: str


class Part(BaseModel):
    """A part as it is stored. `content_digest` is that of its documents, whatever file they came in."""

    part: int
    rows: int
    size: int
    sha256: str
    content_digest: str


class Dataset(ListedDataset):
    """A data set with a page of its parts: those that an upload that broke off need not send again."""

    parts: list[Part]
    parts_total: int


@router.get('/datasets', operation_id='list_datasets')
async def list_all(paging: Annotated[Paging, Query()], call: Call) -> Paged[ListedDataset]:
    return Paged[ListedDataset](**await call.tags('/datasets', **paging.model_dump()))


@router.get('/datasets/{name}', operation_id='get_dataset', responses=MISSING)
async def get(name: DatasetName, paging: Annotated[Paging, Query()], call: Call) -> Dataset:
    return Dataset(**await call.tags('/dataset', name=name, **paging.model_dump()))


@router.delete('/datasets/{name}', operation_id='delete_dataset', responses={**MISSING, 409: {'description': CONFLICT}})
async def delete(name: DatasetName, call: Call) -> ListedDataset:
    """Delete a data set, and return what it was. Not while a run that waits or is at work reads it."""
    return ListedDataset(**await call.tags('/delete_dataset', name=name))


@uploads.put('/datasets/{name}/parts/{part}', operation_id='put_dataset_part', openapi_extra=FILE)
async def put_part(
    name: DatasetName,
    part: Annotated[int, Path(ge=0, le=INT32, description='The number of the part, from 0.', examples=[0])],
    request: Request,
    call: Call,
    format: Annotated[Format | None, Query(description='Of the file; default by its Content-Type.')] = None,
    sha256: Annotated[
        str | None, Query(pattern=SHA256, description='Of the body; `Content-Digest` may tell it, too.')
    ] = None,
    csv_options: Annotated[
        str | None, Query(max_length=4000, description='How to read it: JSON of the arguments of `CSVOptions`.')
    ] = None,
) -> DatasetSummary:
    """Store a CSV, JSONL, Parquet or Arrow file as a part of a data set, which is made if there is none.

    All of it or nothing is stored, and nothing that does not have the checksum that was given. A part that is there
    with the same documents is left as it is; with others, it is replaced. Other documents in part 0 begin anew: all
    parts make way. A path or URL in a cell is not opened.
    """
    kind = format or _format_of(request)
    options = _read_options(csv_options)
    await call.tags('/whoami')  # before the body is taken in
    raw = await request.body()
    if not raw:
        raise HTTPException(400, 'the body is empty: send a file')
    digest = await asyncio.to_thread(check_digest, raw, request.headers, sha256)
    parameters = {
        'name': name,
        'part': part,
        'format': kind,
        'sha256': digest,
        'csv_options': options,
    }
    answer = await call.document('/ingest', parameters, [Document(blob=raw)])
    return DatasetSummary(**(answer.tags or {}))


def _format_of(request: Request) -> Format:
    given = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if given in MEDIA_TYPES:
        return MEDIA_TYPES[given]
    known = ', '.join(MEDIA_TYPES)
    raise HTTPException(
        415,
        f'the body is of the type {given[:80] or "that no Content-Type tells"}: say ?format=csv, jsonl, parquet or '
        f'arrow, or send one of the Content-Types {known}',
    )


def _read_options(given: str | None) -> dict[str, Any] | None:
    if given is None:
        return None
    try:
        options = load_json(given.encode(errors='surrogatepass'))
    except HTTPException as error:
        raise HTTPException(422, f"'csv_options': {str(error.detail).removeprefix('the body ')}") from error
    if not isinstance(options, dict):
        raise HTTPException(422, '\'csv_options\' is no JSON object, such as {"header": true}')
    return options
