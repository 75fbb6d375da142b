"""The REST side of the gateway: one route for each endpoint, documents as JSON, errors as 4xx with a sentence.

`executors.api` puts `/api/v1` beside them.
"""

import os
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from docarray.base_doc.docarray_response import DocArrayResponse
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from jina.serve.networking.sse import EventSourceResponse
from jina.types.request.data import DataRequest
from pydantic import BaseModel, Field, ValidationError

from executors import api, calls, errors, openapi, probes, protobuf
from executors.forwarding import is_small
from executors.limits import BodyLimits, Ending, RateLimits, TrailingSlashes
from executors.openai import OpenAIErrors
from executors.parameters import describe, shorten
from executors.rate import Buckets
from executors.strict_json import kind_of, load_json
from executors.threads import aside, is_quick
from finetuner.documents import Content, Document, DocumentArray
from finetuner.excepts import FinetunerServerError

if TYPE_CHECKING:
    from executors.gateway import RoutingRequestHandler

# what a body may hold beside `data` and `parameters`: clients of Jina write it
OF_JINA = ('header', 'execEndpoint', 'exec_endpoint', 'targetExecutor', 'target_executor', 'request_id')
EXPOSED = ['Content-Disposition', 'Content-Range', 'ETag', 'Repr-Digest', 'Retry-After']


class RequestBody(BaseModel):
    """What is posted to an endpoint."""

    data: list[Document] = Field(default_factory=list, description='The documents; one may come without a list.')
    parameters: dict[str, Any] = Field(default_factory=dict, description='The parameters of the endpoint.')


def build_app(
    handler: 'RoutingRequestHandler', *, title: str | None, description: str | None, cors: bool, buckets: Buckets
) -> FastAPI:
    """The web application over the endpoints that `handler` knows.

    :param cors: open it to pages of every origin, whatever FINETUNER_CORS_ORIGINS says.
    :param buckets: the rate limits, which gRPC shares.
    """
    guard = [Depends(_refuse_token_in_query)]
    app = FastAPI(title=title or 'Finetuner', description=description or '', docs_url='/docs', dependencies=guard)
    app.state.handler = handler
    routed: set[str] = set()

    def add_routes() -> None:
        """For what was learned since the last time."""
        new = handler.endpoints.keys() - routed
        routed.update(new)
        _add_endpoints(app, handler, sorted(new))

    add_routes()
    handler.discovery.follow(add_routes)
    probes.add_routes(app, handler)
    api.add_ping(app)
    errors.install(app, handler.unknown)
    openapi.install(app)
    app.add_middleware(TrailingSlashes, prefix='/api/')
    app.add_middleware(BodyLimits)
    app.add_middleware(RateLimits, buckets=buckets)
    app.add_middleware(OpenAIErrors)
    origins = ['*'] if cors else _allowed_origins()
    if origins:  # around the others, so that a page can read their errors, too
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=['*'], allow_headers=['*'], expose_headers=EXPOSED
        )
    app.add_middleware(Ending)
    return app


def _allowed_origins() -> list[str]:
    given = os.environ.get('FINETUNER_CORS_ORIGINS', '').split(',')
    return [origin.strip().rstrip('/') for origin in given if origin.strip()]


async def _refuse_token_in_query(request: Request) -> None:
    if 'token' in request.query_params:
        sentence = 'a token in a URL ends up in logs: send it in the header, Authorization: Bearer <token>'
        raise HTTPException(400, sentence)


def _add_endpoints(app: FastAPI, handler: 'RoutingRequestHandler', endpoints: Sequence[str]) -> None:
    for endpoint in endpoints:
        if handler.is_streaming(endpoint):
            _add_stream(app, handler, endpoint)
        else:
            _add_post(app, handler, endpoint)
    api.add_routes(app, endpoints)
    app.openapi_schema = None


def _add_post(app: FastAPI, handler: 'RoutingRequestHandler', endpoint: str) -> None:
    described = openapi.describe_endpoint(handler, endpoint)
    needs_token = openapi.needs_token(handler, endpoint)

    @app.post(endpoint, operation_id=f'post_{openapi.name_of(endpoint)}', **described)
    async def post(request: Request) -> Response:
        raw = await request.body()
        if protobuf.is_protobuf(request):
            return await protobuf.answer(endpoint, request, raw)
        body = await aside(is_quick(raw), _parse, raw)
        parameters = calls.with_token(request, body.parameters)
        if needs_token and not parameters.get('token'):
            raise calls.token_is_missing()
        message = await aside(is_quick(raw), calls.make_message, endpoint, parameters, body.data)
        answer = await calls.send(request, message)
        return await aside(is_small(answer), _render, answer)


def _add_stream(app: FastAPI, handler: 'RoutingRequestHandler', endpoint: str) -> None:
    async def stream(request: Request) -> Response:
        """Server-sent events, a document in each. The fields of the query, or a document's `tags`, are parameters."""
        raw = await request.body()
        document = await aside(is_quick(raw), _parse_document, raw)
        tags = {**(document.tags or {}), **request.query_params}
        document.tags = calls.with_token(request, tags)
        return EventSourceResponse(_events(await calls.stream(handler, endpoint, document)))

    for method in ('GET', 'POST'):
        described = openapi.describe_stream(handler, endpoint, method)
        operation = f'{method.lower()}_{openapi.name_of(endpoint)}'
        app.add_api_route(endpoint, stream, methods=[method], operation_id=operation, **described)


async def _events(documents: AsyncIterator[Document]) -> AsyncIterator[dict[str, Any]]:
    try:
        async for document in documents:
            yield {'event': 'update', 'data': document.model_dump(mode='json')}
    except FinetunerServerError as error:
        yield {'event': 'error', 'data': {'detail': str(error)}}
        return
    yield {'event': 'end'}


def _parse(raw: bytes) -> RequestBody:
    body = _load_object(raw, '{"data": [...], "parameters": {...}}')
    if isinstance(body.get('data'), dict):
        body['data'] = [body['data']]
    _refuse_unknown(body)
    try:
        return RequestBody.model_validate(body)
    except ValidationError as error:
        raise HTTPException(422, _place(error, body) + describe(error)) from error


def _parse_document(raw: bytes) -> Document:
    try:
        return Document.model_validate(_load_object(raw, '{"tags": {...}}')) if raw else Document()
    except ValidationError as error:
        raise HTTPException(422, describe(error)) from error


def _load_object(raw: bytes, form: str) -> dict[str, Any]:
    body = load_json(raw)
    if not isinstance(body, dict):
        raise HTTPException(422, f'the body is {kind_of(body)}: send a JSON object, {form}')
    return body


def _refuse_unknown(body: dict[str, Any]) -> None:
    """What nobody would look at is refused: it is a misspelt name, or a document without its envelope."""
    known = {*RequestBody.model_fields, *OF_JINA}
    if unknown := sorted(map(str, body.keys() - known)):
        raise HTTPException(422, f'{unknown[0]!r} is unknown: a body is {{"data": [...], "parameters": {{...}}}}')
    for position, document in enumerate(_items(body, 'data')):
        _refuse_fields(f'document {position}', document, Document)
        for number, chunk in enumerate(_items(document, 'chunks')):
            _refuse_fields(f'document {position}: chunk {number}', chunk, Content)


def _items(value: Any, name: str) -> list[Any]:
    items = value.get(name) if isinstance(value, dict) else None
    return items if isinstance(items, list) else []


def _refuse_fields(place: str, value: Any, model: type[Content]) -> None:
    if not isinstance(value, dict):  # which is told by who reads it
        return
    if not isinstance(value.get('id'), str | None):  # docarray would make a text of anything
        raise HTTPException(422, f"{place}: 'id' must be a text, got {shorten(value['id'])}")
    given = {name for name, content in value.items() if content is not None}
    if unknown := sorted(given - {*model.model_fields, 'content'}):
        fields = ', '.join(model.model_fields)
        raise HTTPException(422, f'{place}: {unknown[0]!r} is unknown: it has {fields}; all else goes into tags')


def _place(error: ValidationError, body: Any) -> str:
    """Which document the first error is about, if it is about one."""
    match error.errors()[0]['loc']:
        case ('data', int(position), *_):
            document = body['data'][position]
            identity = document.get('id') if isinstance(document, dict) else None
            return f'document {position}{f" (id {str(identity)[:80]!r})" if identity else ""}: '
    return ''


def _render(answer: DataRequest) -> Response:
    answer.document_array_cls = DocumentArray
    return DocArrayResponse({'data': answer.docs})
