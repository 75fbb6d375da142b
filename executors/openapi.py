"""What `/openapi.json` and `/docs` say."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from executors import openai, protobuf
from executors.parameters import LogParameters
from finetuner.documents import Content, Document

if TYPE_CHECKING:
    from executors.gateway import RoutingRequestHandler

BEARER = 'bearer'
OPEN = ('/encode', '/encode_texts')
"""Endpoints that need a token only where the operator wants it."""
STREAMED = {'/logstream': LogParameters}
"""Jina knows no parameters of an endpoint that streams: they travel in its document's tags."""
INTRODUCTION = """
Data goes in, a model is fine-tuned on it and served. `/api/v1` is for people and programs that speak REST; the
endpoints beside it are those of the executors, as over gRPC.

A token comes in the header `Authorization: Bearer <token>`. An error is `{"detail": "<one sentence>"}`.
"""
# what any operation may answer beside its own
ERRORS = {
    400: 'What was sent is malformed, or a name in it is unknown.',
    413: 'The body is too large.',
    422: 'A parameter or a field is missing, unknown, or has no valid value.',
    429: 'Too many requests: `Retry-After` tells when there is room again.',
    500: 'The service failed: its log says more.',
    503: 'An executor does not answer, or has no room.',
    504: 'An executor took too long.',
}
HAVE_BODIES = {
    403: 'The quota of the account is used up.',
    408: 'The body came too slowly.',
    415: 'The body is of a media type that is not read here.',
}
UNAUTHORIZED = 'The token is missing, unknown, revoked or expired.'
CONFLICT = 'It is not the time for it: the run is not finished, has failed, or is at work.'
NOT_FOUND = 'There is no such thing.'
SOME = {404: NOT_FOUND, 409: CONFLICT}


class Error(BaseModel):
    """What went wrong, in one sentence."""

    detail: str = Field(examples=["There is no experiment 'supprot': similar names: support"])


def package_version() -> str:
    try:
        return version('finetuner')
    except PackageNotFoundError:
        return '0'


def name_of(endpoint: str) -> str:
    return endpoint.strip('/').replace('/', '_').replace('-', '_') or 'root'


def needs_token(handler: RoutingRequestHandler, endpoint: str) -> bool:
    return endpoint not in OPEN and 'token' in handler.parameters_schema(endpoint).get('properties', {})


def describe_endpoint(handler: RoutingRequestHandler, endpoint: str) -> dict[str, Any]:
    """The arguments of a route that posts to an endpoint."""
    documents = {'type': 'array', 'items': _document()}
    body = {
        'type': 'object',
        'additionalProperties': False,
        'properties': {
            'data': {'anyOf': [documents, _document()], 'description': 'The documents, or one of them alone.'},
            'parameters': _parameters(handler, endpoint),
        },
    }
    answer = {'type': 'object', 'properties': {'data': documents}, 'required': ['data']}
    message = {'schema': {'type': 'string', 'format': 'binary'}}
    return {
        'summary': f'Endpoint {endpoint}',
        'tags': ['endpoints'],
        'description': 'As over gRPC: documents and parameters in, documents out, whose `tags` hold the answer. A '
        f'serialized `jina.DataRequestProto` as `{protobuf.MEDIA_TYPE}` is answered by one, its errors in its header.',
        'responses': {
            200: {
                'description': 'The documents that the executor answers with.',
                'content': {'application/json': {'schema': answer}, protobuf.MEDIA_TYPE: message},
            },
            **_own_errors(endpoint),
        },
        'openapi_extra': {
            'requestBody': {'content': {'application/json': {'schema': body}, protobuf.MEDIA_TYPE: message}},
            **_security(endpoint),
        },
    }


def describe_stream(handler: RoutingRequestHandler, endpoint: str, method: str) -> dict[str, Any]:
    """The arguments of a route that streams what an endpoint does."""
    extra: dict[str, Any] = _security(endpoint)
    if method == 'POST':
        extra['requestBody'] = {'content': {'application/json': {'schema': _document()}}}
    else:
        schema = _parameters(handler, endpoint)
        required = schema.get('required', ())
        extra['parameters'] = [
            {'name': name, 'in': 'query', 'required': name in required, 'schema': field}
            for name, field in schema.get('properties', {}).items()
        ]
    return {
        'summary': f'Streaming endpoint {endpoint}',
        'tags': ['endpoints'],
        'responses': {
            200: {
                'description': 'Events: `update` with a document each, then `end`; or `error`.',
                'content': {'text/event-stream': {'schema': {'type': 'string'}}},
            },
            **_own_errors(endpoint),
        },
        'openapi_extra': extra,
    }


def install(app: FastAPI) -> None:
    """Have the application describe itself in full: every error, the token, the version."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            title = app.title
            schema = get_openapi(title=title, version=package_version(), description=INTRODUCTION, routes=app.routes)
            app.openapi_schema = _complete(schema)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def _complete(schema: dict[str, Any]) -> dict[str, Any]:
    components = schema.setdefault('components', {})
    schemas = components.setdefault('schemas', {})
    schemas |= {'Error': Error.model_json_schema(), **_document_schemas(), **_openai_schemas()}
    for name in ('HTTPValidationError', 'ValidationError'):  # FastAPI's own form of a 422
        schemas.pop(name, None)
    components['securitySchemes'] = {
        BEARER: {'type': 'http', 'scheme': 'bearer', 'description': 'The token of an account: `finetuner.get_token()`.'}
    }
    for path, operations in schema['paths'].items():
        is_openai = path.startswith(openai.PREFIX)
        for method, operation in operations.items():
            responses = operation['responses']
            needed = {} if operation.get('security') in (None, []) else {401: UNAUTHORIZED}
            bodies = HAVE_BODIES if method in ('post', 'put', 'patch') else {}
            described = {**ERRORS, **SOME, **needed, **bodies}
            own = [int(code) for code in responses if code.isdecimal() and code >= '400']
            for code in sorted({*ERRORS, *needed, *bodies, *own}):
                given = responses.get(str(code), {}).get('description')
                is_own = given and given != 'Validation Error'  # FastAPI's
                form = 'OpenAIError' if is_openai else 'Error'
                responses[str(code)] = _error(given if is_own else described[code], code, form)
    return schema


def _error(description: str, code: int, form: str) -> dict[str, Any]:
    response: dict[str, Any] = {
        'description': description,
        'content': {'application/json': {'schema': {'$ref': f'#/components/schemas/{form}'}}},
    }
    if code == 429:
        response['headers'] = {'Retry-After': {'schema': {'type': 'integer'}, 'description': 'Seconds to wait.'}}
    return response


def _own_errors(endpoint: str) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {409: {'description': CONFLICT}}
    return found if endpoint not in OPEN else {}


def _security(endpoint: str) -> dict[str, Any]:
    return {'security': [{BEARER: []}, {}] if endpoint in OPEN else [{BEARER: []}]}


def _parameters(handler: RoutingRequestHandler, endpoint: str) -> dict[str, Any]:
    """The schema of an endpoint's parameters, as its executor tells it, but for the token: that is a header."""
    schema = handler.parameters_schema(endpoint)
    if not schema and endpoint in STREAMED:
        schema = STREAMED[endpoint].model_json_schema()
    if 'properties' in schema:
        schema = {**schema, 'properties': {name: one for name, one in schema['properties'].items() if name != 'token'}}
    if '$defs' in schema:  # references would lead nowhere here
        return {'type': 'object', 'properties': {name: {} for name in schema.get('properties', {})}}
    return schema or {'type': 'object'}


def _document() -> dict[str, Any]:
    return {'$ref': '#/components/schemas/Document'}


def _openai_schemas() -> dict[str, Any]:
    schema = openai.OpenAIError.model_json_schema(ref_template='#/components/schemas/{model}')
    return {**schema.pop('$defs'), 'OpenAIError': schema}


def _document_schemas() -> dict[str, Any]:
    """Document and Content as JSON has them: arrays as lists of any depth, bytes as base64."""
    array = {'anyOf': [{'type': 'array', 'items': {}}, {'type': 'null'}]}
    blob = {'anyOf': [{'type': 'string', 'contentEncoding': 'base64'}, {'type': 'null'}]}
    schemas = {}
    for model in (Content, Document):
        schema = model.model_json_schema()
        schema['properties'] |= {'tensor': array, 'embedding': array, 'blob': blob}
        schema['properties']['id'].pop('example', None)
        schema['additionalProperties'] = False
        schemas[model.__name__] = schema
    chunks = {'type': 'array', 'items': {'$ref': '#/components/schemas/Content'}}
    schemas['Document']['properties']['chunks'] = {'anyOf': [chunks, {'type': 'null'}]}
    return schemas
