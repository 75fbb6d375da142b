"""What an executor answers to a request for an endpoint that it does not have."""

from __future__ import annotations

from jina import Executor

from finetuner.excepts import FinetunerServerError


def unknown_endpoint(executor: Executor) -> FinetunerServerError:
    """The error to raise in a default handler, without which Jina lets such a request pass as if it had succeeded."""
    known = sorted(name for name in executor.requests if name.startswith('/') and name != '/default')
    return FinetunerServerError(f'unknown endpoint: {type(executor).__name__} has {", ".join(known)}')
