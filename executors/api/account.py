"""Who calls, with which tokens, and what that account has stored."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from executors.api.names import Id
from executors.api.request import Body, Call, Paged, Paging, make_router
from executors.openapi import NOT_FOUND, package_version
from executors.patterns import NAME

ping, identity, tokens, usage = (make_router('account') for _ in range(4))


class Pong(BaseModel):
    status: Literal['ok'] = 'ok'
    version: str


class Identity(BaseModel):
    account: str


class NewToken(Body):
    name: str = Field(pattern=NAME, examples=['laptop'])
    days: float | None = Field(
        default=None, gt=0, le=36_500, allow_inf_nan=False, description='How long it is good; without end by default.'
    )


class Token(BaseModel):
    """What is known of a token: everything but the token itself."""

    id: str
    name: str
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None


class ShownToken(BaseModel):
    """A new token. This is the one time that it is shown."""

    id: str
    name: str
    token: str
    created_at: str
    expires_at: str | None = None


class Stored(BaseModel):
    count: int
    bytes: int


class RunCounts(BaseModel):
    waiting: int
    at_work: int
    total: int


class Usage(BaseModel):
    """What the account has stored, and what it may: None is no limit."""

    account: str
    datasets: Stored
    artifacts: Stored
    checkpoints: Stored
    search_items: Stored
    runs: RunCounts
    max_bytes: int | None = None
    max_runs: int | None = None
    max_search_bytes: int


@ping.get('/ping', operation_id='ping')
async def get_ping() -> Pong:
    """Whether somebody is there. Needs no token."""
    return Pong(version=package_version())


@identity.get('/me', operation_id='get_me')
async def get_me(call: Call) -> Identity:
    """The account that the token speaks for."""
    return Identity(**await call.tags('/whoami'))


@tokens.post('/tokens', operation_id='create_token')
async def create_token(body: NewToken, call: Call) -> ShownToken:
    return ShownToken(**await call.tags('/create_token', **body.model_dump()))


@tokens.get('/tokens', operation_id='list_tokens')
async def list_tokens(paging: Annotated[Paging, Query()], call: Call) -> Paged[Token]:
    return Paged[Token](**await call.tags('/tokens', **paging.model_dump()))


@tokens.delete('/tokens/{id}', operation_id='revoke_token', responses={404: {'description': NOT_FOUND}})
async def revoke_token(id: Id, call: Call) -> Token:
    """Make a token worthless, at once."""
    return Token(**await call.tags('/revoke_token', id=id))


@usage.get('/usage', operation_id='get_usage')
async def get_usage(call: Call) -> Usage:
    return Usage(**await call.tags('/usage'))
