"""Whether the service lives and whether it can be used, for those who watch over it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI
from fastapi.exceptions import HTTPException
from pydantic import BaseModel

if TYPE_CHECKING:
    from executors.gateway import RoutingRequestHandler

PATIENCE = 5.0
"""Seconds that the executors may take to answer."""
FRESH = 1.0
"""Seconds for which an answer holds."""


class Health(BaseModel):
    status: Literal['live', 'ready']


class DryRun(BaseModel):
    """What Jina's clients read: code 0 is success."""

    code: int
    description: str


def add_routes(app: FastAPI, handler: RoutingRequestHandler) -> None:
    check = Check(lambda: handler.dry_run(None, None))

    @app.get('/health/live', operation_id='get_health_live', tags=['health'])
    async def live() -> Health:
        """The gateway runs. Whoever watches it starts it again if this fails."""
        return Health(status='live')

    @app.get('/health/ready', operation_id='get_health_ready', tags=['health'])
    async def ready() -> Health:
        """Every executor answers. Until then no traffic should come here."""
        code, description = await check()
        if code:
            raise HTTPException(503, description, {'Retry-After': '1'})
        return Health(status='ready')

    @app.get('/dry_run', operation_id='get_dry_run', tags=['health'])
    async def dry_run() -> DryRun:
        """Whether all executors answer, as Jina tells it."""
        code, description = await check()
        return DryRun(code=code, description=description)


class Check:
    """Asks all executors whether they answer: once for all who want to know at the same time, for anyone may.

    Returns a code, 0 for success, and what is wrong.
    """

    def __init__(self, ask: Callable[[], Awaitable[Any]]):
        self._ask = ask
        self._asked: asyncio.Task[tuple[int, str]] | None = None
        self._at = 0.0

    async def __call__(self) -> tuple[int, str]:
        now = time.monotonic()
        if self._asked is None or (self._asked.done() and now - self._at > FRESH):
            self._asked, self._at = asyncio.create_task(self._answer()), now
        return await asyncio.shield(self._asked)

    async def _answer(self) -> tuple[int, str]:
        try:
            status = await asyncio.wait_for(self._ask(), PATIENCE)
        except TimeoutError:
            return 1, f'not every executor answers within {PATIENCE:g} seconds'
        return status.code, status.description
