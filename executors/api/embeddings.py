"""Embeddings as OpenAI's API has them: its clients work when they are told this service's address."""

from __future__ import annotations

import base64
import json
import sys
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import Response
from pydantic import BaseModel, Field, field_validator

from executors import calls
from executors.api.request import Body, StrictRequest, StrictRoute
from executors.openai import PREFIX
from executors.openapi import BEARER
from finetuner.documents import Document

ENDPOINT = '/encode_texts'
MAX_INPUTS = 2048
"""Texts of one request, as many as OpenAI takes: each becomes thousands of characters of the answer."""
Input = Annotated[str, Field()] | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingsBody(Body):
    """Texts, and how their embeddings are wanted."""

    input: Input = Field(description='A text, or a list of them. Lists of tokens are not taken.')
    model: str | None = Field(
        default=None,
        max_length=1000,
        description='The id of the artifact that is served, or what it was asked for by; default whatever is served.',
    )
    encoding_format: Literal['float', 'base64'] = Field(
        default='float', description='base64 is of little-endian float32.'
    )
    dimensions: int | None = Field(
        default=None, strict=True, ge=1, le=1_000_000, description='Keep so many of the first, and scale to L2 norm 1.'
    )
    user: str | None = Field(default=None, max_length=1000, description='Is not looked at.')

    @field_validator('input', mode='before')
    @classmethod
    def _refuse_tokens(cls, value: Any) -> Any:
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, int | list) and not isinstance(first, bool):
            raise ValueError('lists of tokens are not taken: send the texts')
        if isinstance(value, list) and len(value) > MAX_INPUTS:
            raise ValueError(f'there are {len(value)} texts: send at most {MAX_INPUTS} in one request')
        if not isinstance(value, str | list) or value == []:
            raise ValueError('send a text, or a list of texts that is not empty')
        for position, text in enumerate(value if isinstance(value, list) else ()):
            if not isinstance(text, str):
                raise ValueError(f'text {position} is not a text')
        return value


class Embedding(BaseModel):
    """The embedding of one text."""

    object: Literal['embedding']
    index: int
    embedding: list[float] | str = Field(description='Numbers, or base64 of them.')


class Usage(BaseModel):
    """Tokens of all texts, special ones included, and without those that were cut off."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """Embeddings in the order of the texts."""

    object: Literal['list']
    data: list[Embedding]
    model: str = Field(description='The id of the artifact that has answered.')
    usage: Usage


class LargeRequest(StrictRequest):
    limit = sys.maxsize  # that of the gateway is enough


class LargeRoute(StrictRoute):
    request_class = LargeRequest


router = APIRouter(prefix=PREFIX.rstrip('/'), route_class=LargeRoute, tags=['openai'])


@router.post(
    '/embeddings',
    operation_id='create_embeddings',
    response_model=Embeddings,
    responses={404: {'description': 'The service has another model, or none.'}},
    openapi_extra={'security': [{BEARER: []}, {}]},
)
async def create(body: EmbeddingsBody, request: Request) -> Response:
    """Embed texts. A token is needed only where the operator wants one."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    parameters: dict[str, Any] = {'model': body.model, 'truncate_dim': body.dimensions}
    given = {name: value for name, value in parameters.items() if value is not None}
    given['normalize'] = body.dimensions is not None
    document = Document(text=json.dumps(texts, ensure_ascii=False))
    try:
        message = calls.make_message(ENDPOINT, calls.with_token(request, given), [document])
    except UnicodeEncodeError as error:
        raise HTTPException(400, "'input': a text has half a character (an unpaired surrogate)") from error
    try:
        answer = await calls.send(request, message, missing=404)
    except HTTPException as error:
        raise HTTPException(error.status_code, _rename(error.detail), error.headers) from error
    [found] = await calls.read_documents(answer)
    tags = found.tags
    rows = np.frombuffer(found.blob or b'', '<f4').reshape(int(tags['count']), int(tags['dim']))
    content = {
        'object': 'list',
        'data': [
            {'object': 'embedding', 'index': index, 'embedding': _write(row, body.encoding_format)}
            for index, row in enumerate(rows)
        ],
        'model': tags['model'],
        'usage': {'prompt_tokens': int(tags['tokens']), 'total_tokens': int(tags['tokens'])},
    }
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type='application/json')


def _rename(detail: str) -> str:
    """An error of the endpoint in the words of this request."""
    return detail.replace("'truncate_dim'", "'dimensions'")


def _write(row: np.ndarray, encoding_format: str) -> np.ndarray | str:
    return row if encoding_format == 'float' else base64.b64encode(row.tobytes()).decode()
