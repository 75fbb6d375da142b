"""A request to the one executor that has its endpoint."""

from __future__ import annotations

from typing import Any

import grpc
from jina.excepts import InternalNetworkError
from jina.serve.networking import DEFAULT_MINIMUM_RETRIES, GrpcConnectionPool
from jina.serve.runtimes.helper import _parse_specific_params
from jina.types.request.data import DataRequest

from executors.threads import QUICK_BYTES
from finetuner.excepts import UnavailableError

OF_AN_EXECUTOR = '__'
"""Within the name of a parameter that is for one executor alone, as Jina writes it: `encoder__truncate_dim`."""


def measure_messages_as_they_are() -> None:
    """Have Jina count the bytes of an answer without reading its documents, which may be broken."""
    DataRequest.nbytes = property(_nbytes)


def _nbytes(request: DataRequest) -> int:
    return len(request.buffer) if request.buffer is not None else request.proto_wo_data.ByteSize()


def is_small(message: DataRequest) -> bool:
    """Whether a request or an answer has few bytes."""
    received = getattr(message, 'received', None)
    return (_nbytes(message) if received is None else received) <= QUICK_BYTES


async def forward(request: DataRequest, node: Any, pool: GrpcConnectionPool) -> DataRequest:
    """The answer of an executor, or the request with an error. Jina would copy its whole graph first, for each request.

    :param node: of the executor, in Jina's graph.
    :raises InternalNetworkError: the executor cannot be reached.
    """
    names = request.proto_wo_data.parameters.fields
    is_specific = node.name in names or any(OF_AN_EXECUTOR in name for name in names)
    if is_specific:
        parameters = request.parameters
        request.parameters = _parse_specific_params(parameters, node.name)
    request.header.target_executor = ''  # which may be a Flow itself, that knows nothing of it
    try:
        answer = await _ask(request, node, pool)
    except InternalNetworkError as error:
        node._handle_internalnetworkerror(error)  # raises it, with a hint
    if answer is None:  # the last try ended in what Jina would try again
        request.add_exception(UnavailableError(f'the executor {node.name} broke off the request: try again'))
        return request
    if is_specific:
        answer.parameters = parameters
    return answer


async def _ask(request: DataRequest, node: Any, pool: GrpcConnectionPool) -> DataRequest | None:
    """The answer of one of the replicas. One that is away has the next one asked, as often as Jina would, which has a
    task and two futures more for each request.
    """
    replicas = pool._connections.get_replicas(node.name, True)
    count = len(replicas.get_all_connections())
    has_retries = node._retries is not None and node._retries >= 0
    tries = 1 + (node._retries if has_retries else max(DEFAULT_MINIMUM_RETRIES, count))
    metadata = tuple({**(node._metadata or {}), 'endpoint': request.header.exec_endpoint}.items())
    tried: set[str] = set()
    for number in range(tries):
        connection = await replicas.get_next_connection(num_retries=tries)
        while connection.address in tried and len(tried) < count:
            connection = await replicas.get_next_connection(num_retries=tries)
        tried.add(connection.address)
        try:
            if not connection._initialized:
                await connection._init_stubs()
            answer: DataRequest = await connection.single_data_stub.process_single_data(
                request, metadata=metadata, compression=pool.compression, timeout=node._timeout_send
            )
            if answer.buffer is not None:  # else it was never written, and is only counted where that is of use
                answer.received = len(answer.buffer)
            return answer
        except grpc.aio.AioRpcError as error:
            problem = await pool._handle_aiorpcerror(
                error=error,
                retry_i=number,
                request_id=request.request_id,
                tried_addresses=tried,
                total_num_tries=tries,
                current_address=connection.address,
                current_deployment=connection.deployment_name,
                connection_list=replicas,
            )
            if problem is error:
                raise
            if problem is not None:
                raise problem from error
    return None
