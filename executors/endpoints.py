"""What an executor tells of its endpoints, and answers to a request for one that it does not have."""

from __future__ import annotations

from jina import Executor

from executors.parameters import Parameters
from finetuner.excepts import FinetunerServerError


def unknown_endpoint(executor: Executor) -> FinetunerServerError:
    """The error to raise in a default handler, without which Jina lets such a request pass as if it had succeeded."""
    known = sorted(name for name in executor.requests if name.startswith('/') and name != '/default')
    return FinetunerServerError(f'unknown endpoint: {type(executor).__name__} has {", ".join(known)}')


def describe_parameters(executor: Executor, method: str, model: type[Parameters]) -> None:
    """Have an executor tell the parameters of a handler that takes them as a dict and checks them itself.

    Jina takes a coroutine function whose `parameters` are annotated with a model for a plain one: it calls it in a
    thread, one request at a time, and answers with the coroutine.
    """
    for endpoint, handler in executor.requests.items():
        if handler.fn.__name__ == method:
            executor.requests[endpoint] = handler._replace(parameters_model=model)
