"""A gateway with an encoder in its own process: one server stands between a client and the model, and not two.

An encoder in a process of its own can have replicas, on other machines, too, and starts anew without its gateway. For
one model on one machine that is a further hop for each request, and the memory of a further Python.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from functools import partial
from typing import Any

from jina.logging.logger import JinaLogger
from jina.parsers import set_pod_parser
from jina.proto import jina_pb2
from jina.serve.runtimes.worker.request_handling import WorkerRequestHandler
from jina.types.request.data import DataRequest

from executors.calling_off import FOR_CALLER
from executors.encoder import FinetunerExecutor
from executors.forwarding import is_small
from executors.gateway import FinetunerGateway, RoutingRequestHandler
from executors.log_records import log_as_jina_does

NAME = 'encoder'
GRAPH = {'start-gateway': [NAME], NAME: ['end-gateway']}
NOWHERE = '127.0.0.1:0'
"""Jina wants an address of each executor. Nobody connects to this one."""


class EncoderGateway(FinetunerGateway):
    """`FinetunerGateway` in front of a `FinetunerExecutor`, which is no executor of the Flow.

    :param encoder: what `FinetunerExecutor` is given.
    :raises ValueError: that is no mapping, or stands beside `encoder`, or the Flow has executors.
    """

    def __init__(self, encoder: dict[str, Any] | None = None, **kwargs: Any):
        if not isinstance(encoder, dict | None):
            raise ValueError(f'encoder under uses_with is {encoder!r}, and not what FinetunerExecutor takes, by name')
        if beside := sorted({*inspect.signature(FinetunerExecutor).parameters} & {*kwargs} - {'kwargs'}):
            raise ValueError(f'{beside[0]} stands under uses_with of the gateway: put it under encoder there')
        self.handler_class = partial(EncodingRequestHandler, encoder=encoder or {})
        super().__init__(**kwargs)
        self._request_handler.log_as_encoder()


class EncodingRequestHandler(RoutingRequestHandler):
    """Sends each request to the encoder that it has."""

    def __init__(self, args: Any, logger: JinaLogger, encoder: dict[str, Any], **kwargs: Any):
        if executors := sorted(json.loads(args.deployments_addresses)):
            raise ValueError(
                f'EncoderGateway is an encoder itself, and asks no executor: take {", ".join(executors)} out of the '
                'Flow, or FinetunerGateway in its place'
            )
        args.graph_description = json.dumps(GRAPH)
        args.deployments_addresses = json.dumps({NAME: [NOWHERE]})
        super().__init__(args, logger, **kwargs)
        self._worker = _load_encoder(args, encoder, kwargs.get('tracer_provider'))
        self._connection = _InProcess(self._worker)
        replicas = self.streamer._connection_pool._connections.get_replicas(NAME, head=True)
        replicas._connections[:] = [self._connection]

    def log_as_encoder(self) -> None:
        """What packages log is of the encoder, and as much as that one is to log."""
        log_as_jina_does(self._worker._executor.logger, self._worker.args.name)

    async def close_connections(self) -> None:
        try:
            await super().close_connections()
        finally:
            await self._worker.close()
            self._connection.close()


def _load_encoder(gateway: Any, options: dict[str, Any], tracer_provider: Any) -> WorkerRequestHandler:
    """What Jina has in the process of an executor, without its server.

    :param gateway: its arguments.
    """
    name = f'{NAME}/rep-0'  # as in a process of its own
    args = set_pod_parser().parse_args(['--uses', FinetunerExecutor.__name__, '--name', name])
    args.uses_with = options
    args.allow_concurrent = True  # the lock that Jina has otherwise is of one event loop
    for shared in ('log_config', 'quiet', 'quiet_error', 'workspace'):
        setattr(args, shared, getattr(gateway, shared))
    logger = JinaLogger(name, **vars(args))
    return WorkerRequestHandler(args, logger, tracer_provider=tracer_provider, deployment_name=NAME)


class _InProcess:
    """Stands where Jina has its connection to an executor, and calls one in this process."""

    address, deployment_name = NOWHERE, NAME
    _initialized = True

    def __init__(self, worker: WorkerRequestHandler):
        self._worker = worker
        self.single_data_stub = self
        self._beside = asyncio.new_event_loop()
        threading.Thread(target=self._beside.run_forever, name=NAME, daemon=True).start()

    async def process_single_data(self, request: DataRequest, **kwargs: Any) -> DataRequest:
        """In the loop of the gateway, or where it takes long to read the documents, in one beside it: with some turns
        for each, the gateway goes on.
        """
        work = self._worker.process_data([request], None)
        if is_small(request) or request.header.exec_endpoint not in FOR_CALLER:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._beside))

    async def send_requests(self, requests: list[DataRequest], **kwargs: Any) -> tuple[DataRequest, None]:
        return await self.process_single_data(requests[0]), None

    async def send_discover_endpoint(self, **kwargs: Any) -> tuple[jina_pb2.EndpointsProto, None]:
        return await self._worker.endpoint_discovery(None, None), None

    def close(self) -> None:
        self._beside.call_soon_threadsafe(self._beside.stop)
