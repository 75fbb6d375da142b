"""A server that is to end takes no more requests, and lets those at work finish.

Jina's gRPC server closes its executor and breaks off what it is doing.
"""

from __future__ import annotations

import os

from jina.serve.runtimes.servers.grpc import GRPCServer

VARIABLE = 'FINETUNER_DRAIN_SECONDS'
DEFAULT = 5.0

_shutdown = GRPCServer.shutdown


def drain_seconds() -> float:
    """How long requests at work may go on after a SIGTERM: `FINETUNER_DRAIN_SECONDS`, default 5.

    :raises ValueError: that is no number from 0 on.
    """
    text = os.environ.get(VARIABLE) or DEFAULT
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float('inf'):
        raise ValueError(f'{VARIABLE} is {text!r}, not a number of seconds')
    return seconds


def drain_at_shutdown() -> None:
    """Have every gRPC server of this process do so."""
    seconds = drain_seconds()

    async def shutdown(server: GRPCServer) -> None:
        await server.health_servicer.enter_graceful_shutdown()
        # callers are told to go elsewhere, which they do with what has not begun yet
        await server.server.stop(grace=seconds)
        await _shutdown(server)

    GRPCServer.shutdown = shutdown
