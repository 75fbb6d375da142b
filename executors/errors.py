"""What goes wrong behind the gateway, as HTTP tells it: a status, and one sentence in `detail`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse, Response
from jina.excepts import InternalNetworkError
from jina.proto import jina_pb2
from starlette.requests import ClientDisconnect

from executors.parameters import broken_rule, shorten
from executors.strict_json import kind_of
from finetuner.client.transport import NOT_DONE
from finetuner.excepts import FinetunerServerError

# the status of an answer by the name of the error that the executor raised; others are the service's fault: 500
STATUS = {
    'AuthenticationError': 401,
    'ParameterError': 422,
    'ValidationError': 422,
    'DataError': 400,
    'ArtifactError': 400,
    'ArtifactNotFoundError': 400,
    'RegistryError': 400,
    'NotFoundError': 400,
    'QuotaError': 403,
    'SelectModelRequired': 400,
    'ValueError': 400,
    'TooManyStreams': 429,
    'UnavailableError': 503,
    'BusyError': 429,
    'EngineError': 503,
    'TimeoutError': 504,
    'RunPreparingError': 409,
    'RunInProgressError': 409,
    'RunFailedError': 409,
}
HEADERS = {401: {'WWW-Authenticate': 'Bearer'}, 429: {'Retry-After': '1'}, 503: {'Retry-After': '1'}}
MISSING = ('NotFoundError', 'ArtifactNotFoundError')
METRICS = 'Prometheus is answered by each encoder, at the port FINETUNER_METRICS_PORT: see docs/serving.md, Metrics'
UNREACHABLE = {
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.NOT_FOUND: 503,
    grpc.StatusCode.CANCELLED: 503,  # by an executor that ends
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def raise_for_status(status: jina_pb2.StatusProto, missing: int = 400) -> None:
    """Raise what an executor raised.

    :param missing: the status if the executor looked for a thing that is not there.
    """
    if status.code == jina_pb2.StatusProto.ERROR:
        name = status.exception.name
        code = missing if name in MISSING else STATUS.get(name, 500)
        raise HTTPException(code, message_of(status), HEADERS.get(code))


def message_of(status: jina_pb2.StatusProto) -> str:
    return status.exception.args[0] if status.exception.args else status.description


def unreachable(error: InternalNetworkError) -> HTTPException:
    """An executor that did not answer."""
    code = error.code()
    if code in UNREACHABLE:
        headers = {'Retry-After': '1'} if UNREACHABLE[code] == 503 else None
        return HTTPException(UNREACHABLE[code], error.details(), headers)
    return HTTPException(500, f'an executor failed ({getattr(code, "name", code)}): its log says more')


def refuse(status: int, detail: Any, headers: Any = None) -> JSONResponse:
    """An answer that is an error."""
    # what a client sent may be in it, and need not be possible in UTF-8
    text = str(detail).encode(errors='replace').decode()
    return JSONResponse({'detail': text}, status, headers=headers)


def describe_invalid(error: RequestValidationError) -> str:
    """One sentence for each wrong field of a path, a query, a header or a body."""
    return '; '.join(_sentence(found) for found in error.errors()[:10])


def _sentence(found: Any) -> str:
    place = [str(part) for part in found['loc']]
    where = {'path': 'in the path', 'query': 'in the query', 'header': 'in the headers'}.get(place[0], '')
    name = '.'.join(place[1:]) or place[0]
    reason, value = found['msg'].removeprefix('Value error, '), found.get('input')
    if found['type'] == 'missing':
        return f'the {name} is missing' if name == 'body' else f'{name!r} is missing'
    if found['type'] == 'extra_forbidden':
        return f'{name!r} is unknown'
    if place == ['body']:
        return f'the body is {kind_of(value)}: send a JSON object, {{"name": value, ...}}'
    named = f'{name!r} {where}'.rstrip()
    if rule := broken_rule(found):
        return f'{named}: {shorten(value)} {rule}'
    is_shown = 'token' not in name and isinstance(value, str | int | float | bool | None)
    shown = f', got {shorten(value)}' if is_shown else ''
    return f'{named}: {reason[:1].lower()}{reason[1:]}{shown}'


def absent(error: FinetunerServerError) -> HTTPException:
    """What no executor has: for ever, or until those have answered that start."""
    code = STATUS.get(type(error).__name__, 404)
    return HTTPException(code, str(error), {**HEADERS.get(code, {}), NOT_DONE: 'true'})


def install(app: FastAPI, unknown: Callable[[str], FinetunerServerError]) -> None:
    """Have the application answer every error in this one form.

    :param unknown: the error for a path that there is not.
    """

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> Response:
        return refuse(error.status_code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refuse(422, describe_invalid(error))

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def misplaced(request: Request, error: HTTPException) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 404:  # of a route of ours
            return refuse(404, error.detail, error.headers)
        path = request.url.path
        is_of_prometheus = (request.method, path) == ('GET', '/metrics')
        if error.status_code == 405:
            allowed = ', '.join(_allowed_methods(app, path)) or (error.headers or {}).get('Allow', '')
            hint = f'. {METRICS}' if is_of_prometheus else ''
            return refuse(405, f'{request.method} {path} is not possible: use {allowed}{hint}', {'Allow': allowed})
        if is_of_prometheus:
            return refuse(404, METRICS)
        answer = absent(unknown(path))
        if path.startswith('/api/') and answer.status_code == 404:
            return refuse(404, f'there is no {path[:200]} here: /docs shows what there is')
        return refuse(answer.status_code, answer.detail, answer.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return refuse(400, 'the body broke off')  # for the record: nobody is there to read it

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return refuse(500, f'the gateway failed ({type(error).__name__}): its log says more')


def _allowed_methods(app: FastAPI, path: str) -> list[str]:
    """The methods of all operations at a path; Starlette tells those of the first route alone."""
    found = [
        method.upper()
        for template, operations in app.openapi()['paths'].items()
        if re.fullmatch(re.sub(r'\{\w+\}', '[^/]+', template), path.rstrip('/') or '/')
        for method in operations
    ]
    return sorted(set(found))
