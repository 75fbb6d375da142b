"""The REST side of the gateway: one route for each endpoint, documents as JSON, errors as 4xx with a sentence."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from docarray.base_doc.docarray_response import DocArrayResponse
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from jina.excepts import InternalNetworkError
from jina.proto import jina_pb2
from jina.serve.networking.sse import EventSourceResponse
from jina.types.request.data import DataRequest, SingleDocumentRequest
from pydantic import BaseModel, Field, ValidationError

from executors.parameters import describe
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import DataError

if TYPE_CHECKING:
    from executors.gateway import RoutingRequestHandler

# the status of an answer by the name of the error that the executor raised; others are the service's fault: 500
STATUS = {
    'AuthenticationError': 401,
    'ParameterError': 422,
    'ValidationError': 422,
    'DataError': 400,
    'ArtifactError': 400,
    'RegistryError': 400,
    'SelectModelRequired': 400,
    'ValueError': 400,
    'RunPreparingError': 409,
    'RunInProgressError': 409,
    'RunFailedError': 409,
}
MAX_BODY = 64 << 20
"""Bytes of a request, default of `FINETUNER_MAX_BODY_BYTES`: it is read before anyone has asked for a token."""
# what a body may hold beside `data` and `parameters`: clients of Jina write it
OF_JINA = ('header', 'execEndpoint', 'exec_endpoint', 'targetExecutor', 'target_executor', 'request_id')

UNREACHABLE = {grpc.StatusCode.UNAVAILABLE: 503, grpc.StatusCode.NOT_FOUND: 503, grpc.StatusCode.DEADLINE_EXCEEDED: 504}


class RequestBody(BaseModel):
    """What is posted to an endpoint."""

    data: list[Document] = Field(default_factory=list, description='The documents; one may come without a list.')
    parameters: dict[str, Any] = Field(default_factory=dict, description='The parameters of the endpoint.')


def build_app(handler: 'RoutingRequestHandler', *, title: str | None, description: str | None, cors: bool) -> FastAPI:
    """The web application over the endpoints that `handler` knows."""
    guard = [Depends(_refuse_token_in_query)]
    app = FastAPI(title=title or 'Finetuner', description=description or '', docs_url='/docs', dependencies=guard)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=['*'], allow_methods=['*'], allow_headers=['*'])
    for endpoint in sorted(handler.endpoints()):
        if handler.is_streaming(endpoint):
            _add_stream(app, handler, endpoint)
        else:
            _add_post(app, handler, endpoint)

    @app.get('/health/live', summary='Whether the gateway runs')
    async def live() -> dict[str, str]:
        return {'status': 'live'}

    @app.get('/health/ready', summary='Whether all executors answer')
    async def ready() -> dict[str, str]:
        status = await handler.dry_run(None, None)
        if status.code:
            raise HTTPException(503, f'an executor does not answer: {status.description}')
        return {'status': 'ready'}

    @app.get('/dry_run', summary='Whether all executors answer')
    async def dry_run() -> dict[str, Any]:
        status = await handler.dry_run(None, None)
        return {'code': status.code, 'description': status.description}

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        return JSONResponse({'detail': error.detail}, error.status_code, headers=error.headers)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def unknown(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            detail = f'{request.method} {request.url.path} is not possible: use POST'
            return JSONResponse({'detail': detail}, 405, headers=error.headers)
        return JSONResponse({'detail': str(handler.unknown(request.url.path))}, 404)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return JSONResponse({'detail': f'the gateway failed ({type(error).__name__}): its log says more'}, 500)

    return app


def _refuse_token_in_query(request: Request) -> None:
    if 'token' in request.query_params:
        sentence = 'a token in a URL ends up in logs: send it in the header, Authorization: Bearer <token>'
        raise HTTPException(400, sentence)


def _describe_body() -> dict[str, Any]:
    """`RequestBody` for the documentation, written out: a route's schema cannot refer to definitions of its own."""
    documents = {'type': 'array', 'items': Document.model_json_schema()}
    properties = {'data': documents, 'parameters': {'type': 'object'}}
    return {'content': {'application/json': {'schema': {'type': 'object', 'properties': properties}}}}


def _add_post(app: FastAPI, handler: 'RoutingRequestHandler', endpoint: str) -> None:
    @app.post(endpoint, summary=f'Endpoint {endpoint}', openapi_extra={'requestBody': _describe_body()})
    async def post(request: Request) -> Response:
        raw = await _read(request)
        body = await asyncio.to_thread(_parse, raw)
        message = DataRequest()
        message.header.exec_endpoint = endpoint
        message.parameters = _with_token(request, body.parameters)
        await asyncio.to_thread(_set_documents, message, body.data)
        try:
            answer = await handler.process_single_data(message)
        except InternalNetworkError as error:
            raise HTTPException(UNREACHABLE.get(error.code(), 500), error.details()) from error
        _raise_for_status(answer.header.status)
        return await asyncio.to_thread(_render, answer)


def _add_stream(app: FastAPI, handler: 'RoutingRequestHandler', endpoint: str) -> None:
    @app.api_route(endpoint, methods=['GET', 'POST'], summary=f'Streaming endpoint {endpoint}')
    async def stream(request: Request) -> Response:
        """Server-sent events, a document in each. The fields of the query, or a document's `tags`, are parameters."""
        raw = await _read(request)
        try:
            document = Document.model_validate_json(raw) if raw else Document()
        except ValidationError as error:
            raise HTTPException(422, describe(error)) from error
        tags = {**(document.tags or {}), **request.query_params}
        document.tags = _with_token(request, tags)
        message = SingleDocumentRequest()
        message.header.exec_endpoint = endpoint
        message.document_cls = Document
        try:
            message.data.doc = document
        except DataError as error:
            raise HTTPException(422, str(error)) from error
        answers = handler.stream_doc(message)
        first = await anext(answers, None)  # an error of the first answer can still be the status of the whole
        if first is not None:
            _raise_for_status(first.header.status)
        return EventSourceResponse(_events(first, answers))


async def _events(
    first: SingleDocumentRequest | None, rest: AsyncIterator[SingleDocumentRequest]
) -> AsyncIterator[dict[str, Any]]:
    if first is not None:
        yield _event(first)
    async for answer in rest:
        if answer.header.status.code == jina_pb2.StatusProto.ERROR:
            yield {'event': 'error', 'data': {'detail': _message(answer.header.status)}}
            return
        yield _event(answer)
    yield {'event': 'end'}


def _event(answer: SingleDocumentRequest) -> dict[str, Any]:
    answer.document_cls = Document
    return {'event': 'update', 'data': answer.data.doc.model_dump(mode='json')}


async def _read(request: Request) -> bytes:
    """The body, unless it is too large: then not even as much as may be held."""
    limit = int(os.environ.get('FINETUNER_MAX_BODY_BYTES') or MAX_BODY)
    refusal = HTTPException(413, f'the body is larger than {limit} bytes: send it in parts')
    if int(request.headers.get('content-length') or 0) > limit:
        raise refusal
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise refusal
        pieces.append(piece)
    return b''.join(pieces)


def _parse(raw: bytes) -> RequestBody:
    try:
        body = json.loads(raw or b'{}')
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f'the body is not JSON: {error}') from error
    if isinstance(body, dict) and isinstance(body.get('data'), dict):
        body['data'] = [body['data']]
    if isinstance(body, dict):
        _refuse_unknown(body)
    try:
        return RequestBody.model_validate(body)
    except ValidationError as error:
        raise HTTPException(422, _place(error, body) + describe(error)) from error


def _refuse_unknown(body: dict[str, Any]) -> None:
    """What nobody would look at is refused: it is a misspelt name, or a document without its envelope."""
    known = {*RequestBody.model_fields, *OF_JINA}
    if unknown := sorted(map(str, body.keys() - known)):
        raise HTTPException(422, f'{unknown[0]!r} is unknown: a body is {{"data": [...], "parameters": {{...}}}}')
    documents = body.get('data')
    for position, document in enumerate(documents if isinstance(documents, list) else []):
        given = {name for name, value in document.items() if value is not None} if isinstance(document, dict) else set()
        if unknown := sorted(given - {*Document.model_fields, 'content'}):
            fields = ', '.join(Document.model_fields)
            raise HTTPException(
                422, f'document {position}: {unknown[0]!r} is unknown: it has {fields}; all else goes into tags'
            )


def _place(error: ValidationError, body: Any) -> str:
    """Which document the first error is about, if it is about one."""
    match error.errors()[0]['loc']:
        case ('data', int(position), *_):
            document = body['data'][position]
            identity = document.get('id') if isinstance(document, dict) else None
            return f'document {position}{f" (id {identity!r})" if identity else ""}: '
    return ''


def _set_documents(message: DataRequest, documents: list[Document]) -> None:
    message.document_array_cls = DocumentArray
    try:
        message.data.docs = DocumentArray(documents)
    except DataError as error:  # such as an integer in tags that is too large for a message
        raise HTTPException(422, str(error)) from error


def _render(answer: DataRequest) -> Response:
    answer.document_array_cls = DocumentArray
    return DocArrayResponse({'data': answer.docs})


def _with_token(request: Request, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters, with the token of the `Authorization` header unless they carry one."""
    kind, _, token = request.headers.get('authorization', '').partition(' ')
    if token and kind.lower() in ('bearer', 'token') and 'token' not in parameters:
        return {**parameters, 'token': token.strip()}
    return parameters


def _raise_for_status(status: jina_pb2.StatusProto) -> None:
    if status.code == jina_pb2.StatusProto.ERROR:
        code = STATUS.get(status.exception.name, 500)
        raise HTTPException(code, _message(status), {'WWW-Authenticate': 'Bearer'} if code == 401 else None)


def _message(status: jina_pb2.StatusProto) -> str:
    return status.exception.args[0] if status.exception.args else status.description
