"""How a gateway learns which endpoints the executors behind it have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
from jina.excepts import InternalNetworkError

GRACE = 20.0
"""Seconds after which a gateway starts with those executors that have answered, if any have."""
PATIENCE = 10.0
"""Seconds that one executor has for one answer."""
PAUSE = 0.25
"""Seconds between two rounds of questions."""
DEFAULT_ENDPOINT = '/default'
END = '__end_gateway__'
"""Jina's name for the end of the graph, which is no executor."""


class Discovery:
    """Asks every executor until it has answered: a gateway that starts need not wait for one that stays away.

    `endpoints` has the node of Jina's graph that has each endpoint, by endpoint, as far as they have told.

    :param graph: Jina's graph of the Flow: its nodes are the executors, and keep what they have answered.
    :param pool: the connections to them.
    """

    def __init__(self, graph: Any, pool: Any, logger: Any):
        self.endpoints: dict[str, Any] = {}
        self._graph, self._pool, self._logger = graph, pool, logger
        self._known: tuple[list[Any], list[Any]] = [], []  # schemas, and the models that Jina made of them
        self._followers: list[Callable[[], None]] = []
        self._asking: asyncio.Task[None] | None = None
        self._deadline = 0.0

    def missing(self) -> list[str]:
        """The executors that have not answered yet."""
        return sorted(node.name for node in self.nodes() if node.endpoints is None)

    def follow(self, learned: Callable[[], None]) -> None:
        """Have a function called whenever a further executor has answered."""
        self._followers.append(learned)

    async def wait(self, is_cancel: asyncio.Event | None = None) -> None:
        """Return once all have answered, or some of them and `GRACE` is over, or the Flow gives up."""
        if self._asking is None:  # each server of the gateway waits
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._tell_failure)
            self._deadline = time.monotonic() + GRACE
        while not (self._asking.done() or self._is_enough() or (is_cancel is not None and is_cancel.is_set())):
            await asyncio.wait([self._asking], timeout=PAUSE)
        if self._asking.done():
            await self._asking  # it may have failed
        # Jina would ask by itself, at the first request
        self._graph._all_endpoints = {name for node in self.nodes() for name in node.endpoints or ()}

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    def nodes(self) -> list[Any]:
        """Of the executors, in Jina's graph."""
        return [node for node in self._graph.all_nodes if node.name != END]

    def _told(self) -> dict[str, Any]:
        return {
            endpoint: node
            for node in self.nodes()
            for endpoint in node.endpoints or ()
            if endpoint != DEFAULT_ENDPOINT and endpoint.startswith('/')
        }

    def _is_enough(self) -> bool:
        return time.monotonic() > self._deadline and len(self.missing()) < len(self.nodes())

    async def _ask(self) -> None:
        while missing := [node for node in self.nodes() if node.endpoints is None]:
            await asyncio.gather(*(self._ask_one(node) for node in missing))
            await asyncio.sleep(PAUSE)

    async def _ask_one(self, node: Any) -> None:
        try:
            await asyncio.wait_for(node.get_endpoints(self._pool, *self._known), PATIENCE)
        except (InternalNetworkError, grpc.aio.AioRpcError, TimeoutError) as error:
            self._logger.debug(f'waiting for the executor {node.name}: {error}')
            return
        self.endpoints = self._told()
        for learned in self._followers:
            learned()

    def _tell_failure(self, asking: asyncio.Task[None]) -> None:
        if not asking.cancelled() and (error := asking.exception()) is not None:
            self._logger.error(f'no executor is asked for its endpoints any more: {error!r}')
