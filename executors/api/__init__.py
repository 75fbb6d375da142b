"""`/api/v1`: experiments, runs, data sets, artifacts and accounts as REST has them, in the terms of Jina's Finetuner,
and clicks and what is learned from them in those of Embedding Studio.

`/v1/embeddings` beside it is what OpenAI's clients ask for. Every route is a thin translation to an endpoint of the
executors; nothing here knows the registry.
"""

from __future__ import annotations

from collections.abc import Collection

from fastapi import APIRouter, FastAPI

from executors.api import (
    account,
    aliases,
    artifacts,
    clickstream,
    datasets,
    embeddings,
    experiments,
    logs,
    runs,
    searching,
    tuning,
)
from executors.api.request import StrictRoute

# the routers, and the endpoint without which there is nothing to translate to
ROUTERS = {
    '/whoami': account.identity,
    '/tokens': account.tokens,
    '/usage': account.usage,
    '/experiments': experiments.router,
    '/runs': runs.router,
    '/logs': logs.router,
    '/ingest': datasets.uploads,
    '/datasets': datasets.router,
    '/artifact': artifacts.downloads,
    '/artifacts': artifacts.router,
    '/aliases': aliases.router,
    '/register_session': clickstream.router,
    '/tuning_tasks': tuning.router,
    '/search': searching.router,
}


def add_routes(app: FastAPI, endpoints: Collection[str]) -> None:
    """Add the routes that translate to one of these endpoints."""
    api = APIRouter(prefix='/api/v1', route_class=StrictRoute)
    for endpoint, router in ROUTERS.items():
        if endpoint in endpoints:
            api.include_router(router)
    app.include_router(api)
    if embeddings.ENDPOINT in endpoints:
        app.include_router(embeddings.router)


def add_ping(app: FastAPI) -> None:
    """Add the route that needs no executor."""
    app.include_router(account.ping, prefix='/api/v1')
