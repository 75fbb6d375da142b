"""A gateway with an encoder in its own process: one server stands between a client and the model, and not two.

An encoder in a process of its own can have replicas, on other machines, too, and starts anew without its gateway. For
one model on one machine that is a further hop for each request, and the memory of a further Python.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from jina.logging.logger import JinaLogger
from jina.parsers import set_pod_parser
from jina.proto import jina_pb2
from jina.serve.runtimes.worker.request_handling import WorkerRequestHandler
from jina.types.request.data import DataRequest

from executors.encoder import FinetunerExecutor
from executors.gateway import FinetunerGateway, RoutingRequestHandler

NAME = 'encoder'
GRAPH = {'start-gateway': [NAME], NAME: ['end-gateway']}
NOWHERE = '127.0.0.1:0'
"""Jina wants an address of each executor. Nobody connects to this one."""


class EncoderGateway(FinetunerGateway):
    """`FinetunerGateway` in front of a `FinetunerExecutor`, which is no executor of the Flow.

    :param encoder: what `FinetunerExecutor` is given.
    """

    def __init__(self, encoder: dict[str, Any] | None = None, **kwargs: Any):
        self.handler_class = partial(EncodingRequestHandler, encoder=encoder or {})
        super().__init__(**kwargs)


class EncodingRequestHandler(RoutingRequestHandler):
    """Sends each request to the encoder that it has."""

    def __init__(self, args: Any, logger: JinaLogger, encoder: dict[str, Any], **kwargs: Any):
        args.graph_description = json.dumps(GRAPH)
        args.deployments_addresses = json.dumps({NAME: [NOWHERE]})
        super().__init__(args, logger, **kwargs)
        self._worker = _load_encoder(encoder, kwargs.get('tracer_provider'))
        replicas = self.streamer._connection_pool._connections.get_replicas(NAME, head=True)
        replicas._connections[:] = [_InProcess(self._worker)]

    async def close_connections(self) -> None:
        await super().close_connections()
        await self._worker.close()


def _load_encoder(options: dict[str, Any], tracer_provider: Any) -> WorkerRequestHandler:
    """What Jina has in the process of an executor, without its server."""
    name = f'{NAME}/rep-0'  # as in a process of its own
    args = set_pod_parser().parse_args(['--uses', FinetunerExecutor.__name__, '--name', name])
    args.uses_with = options
    logger = JinaLogger(name, **vars(args))
    return WorkerRequestHandler(args, logger, tracer_provider=tracer_provider, deployment_name=NAME)


class _InProcess:
    """Stands where Jina has its connection to an executor, and calls one in this process."""

    address, deployment_name = NOWHERE, NAME
    _initialized = True

    def __init__(self, worker: WorkerRequestHandler):
        self._worker = worker
        self.single_data_stub = self

    async def process_single_data(self, request: DataRequest, **kwargs: Any) -> DataRequest:
        return await self._worker.process_data([request], None)

    async def send_requests(self, requests: list[DataRequest], **kwargs: Any) -> tuple[DataRequest, None]:
        return await self._worker.process_data(requests, None), None

    async def send_discover_endpoint(self, **kwargs: Any) -> tuple[jina_pb2.EndpointsProto, None]:
        return await self._worker.endpoint_discovery(None, None), None
