"""A request to the one executor that has its endpoint."""

from __future__ import annotations

from typing import Any

from jina.excepts import InternalNetworkError
from jina.serve.networking import GrpcConnectionPool
from jina.serve.runtimes.helper import _parse_specific_params
from jina.types.request.data import DataRequest

from finetuner.excepts import UnavailableError

OF_AN_EXECUTOR = '__'
"""Within the name of a parameter that is for one executor alone, as Jina writes it: `encoder__truncate_dim`."""


def measure_messages_as_they_are() -> None:
    """Have Jina count the bytes of an answer without reading its documents, which may be broken."""
    DataRequest.nbytes = property(_nbytes)


def _nbytes(request: DataRequest) -> int:
    return len(request.buffer) if request.buffer is not None else request.proto_wo_data.ByteSize()


async def forward(request: DataRequest, node: Any, pool: GrpcConnectionPool) -> DataRequest:
    """The answer of an executor, or the request with an error. Jina would copy its whole graph first, for each request.

    :param node: of the executor, in Jina's graph.
    :raises InternalNetworkError: the executor cannot be reached.
    """
    parameters = request.parameters
    is_specific = node.name in parameters or any(OF_AN_EXECUTOR in name for name in parameters)
    if is_specific:
        request.parameters = _parse_specific_params(parameters, node.name)
    request.header.target_executor = ''  # which may be a Flow itself, that knows nothing of it
    result = await pool.send_requests_once(
        [request],
        node.name,
        metadata=dict(node._metadata or {}),
        head=True,
        endpoint=request.header.exec_endpoint,
        timeout=node._timeout_send,
        retries=node._retries,
    )
    if result is None:  # the last try ended in what Jina would try again
        request.add_exception(UnavailableError(f'the executor {node.name} broke off the request: try again'))
        return request
    try:
        if isinstance(result, BaseException):
            raise result
    except InternalNetworkError as error:
        node._handle_internalnetworkerror(error)  # raises it, with a hint
    answer: DataRequest = result[0]
    if is_specific:
        answer.parameters = parameters
    return answer
