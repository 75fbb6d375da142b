"""Whether the service lives and whether it can be used, for those who watch over it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from fastapi import FastAPI
from fastapi.exceptions import HTTPException
from pydantic import BaseModel

if TYPE_CHECKING:
    from executors.gateway import RoutingRequestHandler

PATIENCE = 5.0
"""Seconds that the executors may take to answer."""


class Health(BaseModel):
    status: Literal['live', 'ready']


class DryRun(BaseModel):
    """What Jina's clients read: code 0 is success."""

    code: int
    description: str


def add_routes(app: FastAPI, handler: RoutingRequestHandler) -> None:
    @app.get('/health/live', operation_id='get_health_live', tags=['health'])
    async def live() -> Health:
        """The gateway runs. Whoever watches it starts it again if this fails."""
        return Health(status='live')

    @app.get('/health/ready', operation_id='get_health_ready', tags=['health'])
    async def ready() -> Health:
        """Every executor answers. Until then no traffic should come here."""
        try:
            status = await asyncio.wait_for(handler.dry_run(None, None), PATIENCE)
        except TimeoutError as error:
            detail = f'not every executor answers within {PATIENCE:g} seconds'
            raise HTTPException(503, detail, {'Retry-After': '1'}) from error
        if status.code:
            raise HTTPException(503, f'an executor does not answer: {status.description}', {'Retry-After': '1'})
        return Health(status='ready')

    @app.get('/dry_run', operation_id='get_dry_run', tags=['health'])
    async def dry_run() -> DryRun:
        """Whether all executors answer, as Jina tells it."""
        status = await handler.dry_run(None, None)
        return DryRun(code=status.code, description=status.description)
