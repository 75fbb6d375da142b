"""What every route of `/api/v1` has in common: strict JSON in, a token, a call to an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Security
from fastapi.exceptions import HTTPException
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from executors import calls
from executors.errors import absent
from executors.openapi import BEARER
from executors.parameters import INT32, refuse_truth_for_a_number
from executors.strict_json import load_json
from executors.threads import aside, is_quick
from finetuner.documents import Document

if TYPE_CHECKING:
    from executors.gateway import RoutingRequestHandler

Item = TypeVar('Item')

MAX_JSON = 1 << 20
"""Bytes of a body that is JSON; files are larger."""


class Body(BaseModel):
    """Base of all that is sent: an unknown name is an error, and no error shows what was sent whole."""

    model_config = ConfigDict(extra='forbid', hide_input_in_errors=True, protected_namespaces=())

    @field_validator('*', mode='before')
    @classmethod
    def _refuse_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        return refuse_truth_for_a_number(cls, value, info)


class Paged(BaseModel, Generic[Item]):
    """Some of a list, the newest first.

    `total` counts the items of all pages; `page` counts from 1; a page has at most `size` items.
    """

    items: list[Item]
    total: int
    page: int
    size: int


class Paging(Body):
    """Which page of a list."""

    page: Annotated[int, Query(ge=1, le=INT32)] = 1
    size: Annotated[int, Query(ge=1, le=100)] = 50


class StrictRequest(Request):
    limit = MAX_JSON

    async def json(self) -> Any:
        raw = await self.body()
        if len(raw) > self.limit:
            raise HTTPException(413, f'the body is larger than {self.limit} bytes')
        return await aside(is_quick(raw), load_json, raw)


class StrictRoute(APIRoute):
    """A route whose body is JSON to the letter, and says so."""

    request_class: ClassVar[type[StrictRequest]] = StrictRequest

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
            if self.body_field is not None and kind != 'application/json' and not kind.endswith('+json'):
                kind = kind or 'that no Content-Type tells'
                detail = f'the body is of the type {kind}: send Content-Type: application/json'
                raise HTTPException(415, detail[:300])
            return await handle(self.request_class(request.scope, request.receive))

        return strict


def make_router(*tags: str) -> APIRouter:
    return APIRouter(route_class=StrictRoute, tags=list(tags))


bearer = HTTPBearer(auto_error=False, scheme_name=BEARER)


async def need_token(request: Request, _: Annotated[Any, Security(bearer)]) -> str:
    """The token of the request, not yet checked: the executor does that."""
    token = calls.token_of(request)
    if token is None:
        raise calls.token_is_missing()
    return token


class Caller:
    """Calls endpoints in the name of whoever sent the request."""

    def __init__(self, request: Request, token: Annotated[str, Depends(need_token)]):
        self.request = request
        self.handler: RoutingRequestHandler = request.app.state.handler
        self.token = token

    async def document(
        self, endpoint: str, parameters: dict[str, Any], documents: Sequence[Document] = (), missing: int = 404
    ) -> Document:
        """The one document that an endpoint answers with.

        :param parameters: those that are None are left out.
        :param missing: the status if what the endpoint looks for is not there.
        :raises HTTPException: what the endpoint raised.
        """
        if endpoint not in self.handler.endpoints:
            raise absent(self.handler.unknown(endpoint))
        given = {name: value for name, value in parameters.items() if value is not None} | {'token': self.token}
        message = await asyncio.to_thread(calls.make_message, endpoint, given, documents)
        answer = await calls.send(self.request, message, missing)
        return (await calls.read_documents(answer))[0]

    async def tags(self, endpoint: str, missing: int = 404, **parameters: Any) -> dict[str, Any]:
        """The tags of that document."""
        return dict((await self.document(endpoint, parameters, missing=missing)).tags or {})

    async def stream(self, endpoint: str, parameters: dict[str, Any]) -> AsyncIterator[Document]:
        """The documents of an endpoint that streams."""
        return await calls.stream(self.handler, endpoint, Document(tags={**parameters, 'token': self.token}), 404)


Call = Annotated[Caller, Depends()]
