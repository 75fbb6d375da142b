"""Calls from the gateway to the endpoints of the executors, on behalf of an HTTP request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.exceptions import HTTPException
from jina.excepts import InternalNetworkError
from jina.proto import jina_pb2
from jina.types.request.data import DataRequest, SingleDocumentRequest
from starlette.requests import ClientDisconnect

from executors.calling_off import FOR_CALLER
from executors.errors import message_of, raise_for_status, unreachable
from executors.forwarding import is_small
from executors.threads import aside
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import DataError, FinetunerServerError

if TYPE_CHECKING:
    from executors.gateway import RoutingRequestHandler

MAX_DEPTH = 30
"""Levels of a parameter; a message that nests three times as deep cannot be read."""


def token_of(request: Request) -> str | None:
    return read_token(request.headers.get('authorization', ''))


def read_token(authorization: str) -> str | None:
    """The token of the header `Authorization: Bearer <token>`; Jina's Finetuner wrote `token` for `Bearer`."""
    kind, _, token = authorization.partition(' ')
    return token.strip() or None if kind.lower() in ('bearer', 'token') else None


def token_is_missing() -> HTTPException:
    detail = 'A token is needed: send the header Authorization: Bearer <token>'
    return HTTPException(401, detail, {'WWW-Authenticate': 'Bearer'})


def with_token(request: Request, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters, with the token of the header unless they carry one."""
    token = token_of(request)
    return {**parameters, 'token': token} if token and 'token' not in parameters else parameters


def make_message(endpoint: str, parameters: dict[str, Any], documents: Sequence[Document]) -> DataRequest:
    """
    :raises HTTPException: 422: a message cannot carry it, such as an integer that is too large.
    """
    message = DataRequest()
    message.header.exec_endpoint = endpoint
    try:
        _check_depth(parameters, MAX_DEPTH)
        message.parameters = parameters
    except (ValueError, OverflowError, TypeError) as error:
        raise HTTPException(422, f'parameters: {_plain_reason(error)}') from error
    message.document_array_cls = DocumentArray
    try:
        message.data.docs = DocumentArray(documents)
    except DataError as error:
        raise HTTPException(422, str(error)) from error
    return message


async def send(request: Request, message: DataRequest, missing: int = 400) -> DataRequest:
    """The answer of the executor.

    :param request: on whose behalf. Its body was read.
    :param missing: the status if the executor looked for a thing that is not there.
    :raises HTTPException: what the executor raised, or that it cannot be reached.
    """
    answer = await process(request, message)
    raise_for_status(answer.header.status, missing)
    return answer


async def process(request: Request, message: DataRequest) -> DataRequest:
    """The answer of the executor, its error in its header.

    :raises HTTPException: it cannot be reached.
    :raises ClientDisconnect: whoever asked for what is computed for them alone has gone.
    """
    work = asyncio.create_task(request.app.state.handler.process_single_data(message))
    waited: list[asyncio.Future[Any]] = [work]
    if message.header.exec_endpoint in FOR_CALLER:
        # of a request whose body was read nothing but the end of the connection can come
        waited.append(asyncio.ensure_future(request.receive()))
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return await work
    except InternalNetworkError as error:
        raise unreachable(error) from error
    finally:
        for future in waited:
            future.cancel()


async def stream(
    handler: RoutingRequestHandler, endpoint: str, document: Document, missing: int = 400
) -> AsyncIterator[Document]:
    """The documents of a streaming endpoint. An error of the first is raised by the call, that of a later one by it.

    :param document: its tags are the parameters.
    :raises HTTPException: what the executor raised.
    """
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
        raise_for_status(first.header.status, missing)
    return _documents(first, answers)


async def _documents(
    first: SingleDocumentRequest | None, rest: AsyncIterator[SingleDocumentRequest]
) -> AsyncIterator[Document]:
    if first is not None:
        yield _document(first)
    async for answer in rest:
        if answer.header.status.code == jina_pb2.StatusProto.ERROR:
            raise FinetunerServerError(message_of(answer.header.status))
        yield _document(answer)


def _document(answer: SingleDocumentRequest) -> Document:
    answer.document_cls = Document
    return answer.data.doc


async def read_documents(answer: DataRequest) -> DocumentArray:
    answer.document_array_cls = DocumentArray
    return await aside(is_small(answer), lambda: answer.docs)


def _check_depth(value: Any, levels: int) -> None:
    if isinstance(value, dict | list):
        if not levels:
            raise ValueError(f'they nest deeper than {MAX_DEPTH} levels')
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, levels - 1)


def _plain_reason(error: Exception) -> str:
    if isinstance(error, OverflowError):
        return 'a number is too large'
    if isinstance(error, UnicodeEncodeError):
        return 'a text has half a character (an unpaired surrogate)'
    return str(error)
