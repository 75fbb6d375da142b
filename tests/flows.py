"""Flows for tests, in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jina import Flow


@contextmanager
def run_flow(build: Callable[..., Flow], *arguments: Any) -> Iterator[None]:
    """Run the Flow that `build(*arguments)` makes.

    Jina forks: a fork of a test's process, in which threads of gRPC and PyTorch hold locks, may wait for ever.
    """
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, build, arguments))
    process.start()
    theirs.close()
    try:
        assert ours.poll(180), 'the Flow has not started within 180 seconds'
        ours.recv()
        yield
    finally:
        ours.close()
        process.join(60)
        if process.exitcode is None:
            process.kill()
    assert process.exitcode == 0


def _run(connection: Connection, build: Callable[..., Flow], arguments: tuple[Any, ...]) -> None:
    multiprocessing.set_start_method('fork', force=True)  # as where a Flow is started by itself
    with build(*arguments):
        connection.send('started')
        with contextlib.suppress(EOFError):
            connection.recv()
