"""Aliases: `name@stage` names an artifact, now this one and later another."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, Field

from executors.api.names import AliasName
from executors.api.request import Body, Call, Paged, Paging, make_router
from executors.openapi import CONFLICT, NOT_FOUND

router = make_router('aliases')


class Target(Body):
    artifact: str = Field(
        min_length=1,
        max_length=401,
        description="The id of an artifact, 'experiment/run', or another alias, which is looked up now.",
        examples=['support/first'],
    )


class Alias(BaseModel):
    """What an alias names now. `number` counts its promotions."""

    alias: str
    artifact_id: str
    number: int
    experiment_name: str | None = None
    run_name: str | None = None
    created_at: str


class Promotion(BaseModel):
    """What an alias names now, and what it named before."""

    alias: str
    artifact_id: str
    number: int
    previous: str | None = None
    created_at: str


class PastTarget(BaseModel):
    number: int
    artifact_id: str
    created_at: str


class AliasHistory(Alias):
    """What an alias names now, and a page of all it has named that is still there, the newest first."""

    history: list[PastTarget]
    history_total: int


@router.get('/aliases', operation_id='list_aliases')
async def list_all(paging: Annotated[Paging, Query()], call: Call) -> Paged[Alias]:
    return Paged[Alias](**await call.tags('/aliases', **paging.model_dump()))


@router.get('/aliases/{alias}', operation_id='get_alias', responses={404: {'description': NOT_FOUND}})
async def get(alias: AliasName, paging: Annotated[Paging, Query()], call: Call) -> AliasHistory:
    return AliasHistory(**await call.tags('/alias', alias=alias, **paging.model_dump()))


@router.delete('/aliases/{alias}', operation_id='delete_alias', responses={404: {'description': NOT_FOUND}})
async def delete(alias: AliasName, call: Call) -> Alias:
    """Delete an alias with its history, and return what it named. The artifact stays."""
    return Alias(**await call.tags('/delete_alias', alias=alias))


@router.put(
    '/aliases/{alias}',
    operation_id='promote',
    responses={404: {'description': NOT_FOUND}, 409: {'description': CONFLICT}},
)
async def promote(alias: AliasName, body: Target, call: Call) -> Promotion:
    """Let the alias name this artifact from now on. What serves the alias follows within seconds."""
    return Promotion(**await call.tags('/promote', alias=alias, artifact=body.artifact))


@router.post(
    '/aliases/{alias}/rollback',
    operation_id='rollback',
    responses={404: {'description': NOT_FOUND}, 409: {'description': CONFLICT}},
)
async def rollback(alias: AliasName, call: Call) -> Promotion:
    """Let the alias name what it named before."""
    return Promotion(**await call.tags('/rollback', alias=alias))
