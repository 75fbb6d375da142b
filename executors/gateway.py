"""The gateway of the Flows: one gRPC and one HTTP port in front of several executors.

Jina's own gateway lets a request for an unknown endpoint pass as if it had succeeded, sends every streaming request to
the first executor, and refuses to start a Flow whose executors do not share their endpoints. This one asks the
executors for their endpoints at the start and sends each request to the executor that has its endpoint.
"""

import asyncio
import math
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
from fastapi import FastAPI
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.message import DecodeError
from jina.excepts import InternalNetworkError
from jina.proto import jina_pb2
from jina.serve.executors import __dry_run_endpoint__
from jina.serve.runtimes.gateway.composite import CompositeGateway
from jina.serve.runtimes.gateway.request_handling import GatewayRequestHandler
from jina.serve.runtimes.servers.http import FastAPIBaseServer
from jina.types.request import Request
from jina.types.request.data import DataRequest, SingleDocumentRequest

from executors.drain import drain_at_shutdown, drain_seconds
from executors.lifetime import end_with_parent
from executors.limits import MAX_HEADER_BYTES, PatientProtocol
from executors.rate import Buckets, max_body
from executors.rest import build_app
from executors.tls import Certificate, read_certificate
from finetuner.documents import Document
from finetuner.excepts import FinetunerServerError, ParameterError

DEFAULT_ENDPOINT = '/default'


class RoutingRequestHandler(GatewayRequestHandler):
    """Sends each request to the executor that has its endpoint, and answers the others with the list of endpoints."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._discovery = asyncio.Lock()
        self.buckets = Buckets.from_environment()
        # The executors stand side by side: they are no pipeline, whose schemas would have to fit.
        self.streamer._get_endpoints_input_output_models = self._discover
        self.streamer._validate_flow_docarray_compatibility = lambda: None
        # gRPC streams, single gRPC requests and HTTP all pass through this one function
        self._forward = self.streamer._streamer._request_handler
        self.streamer._streamer._request_handler = self._route

    async def _discover(self, is_cancel: asyncio.Event | None = None) -> None:
        """Ask the executors for their endpoints until all are loaded and have answered, or the Flow gives up."""
        async with self._discovery:  # each server asks
            while is_cancel is None or not is_cancel.is_set():
                try:
                    await self.streamer.topology_graph._get_all_endpoints(self.streamer._connection_pool)
                    return
                except (InternalNetworkError, grpc.aio.AioRpcError) as error:
                    self.logger.debug(f'waiting for the executors: {error}')
                    await asyncio.sleep(0.25)

    def endpoints(self) -> dict[str, Any]:
        """The node of the Flow's graph that has each endpoint, by endpoint; known once the servers are set up."""
        return {
            endpoint: node
            for node in self.streamer.topology_graph.all_nodes
            for endpoint in node.endpoints or ()
            if endpoint != DEFAULT_ENDPOINT and endpoint.startswith('/')
        }

    async def endpoint_discovery(self, empty: Any, context: Any) -> jina_pb2.EndpointsProto:
        return jina_pb2.EndpointsProto(endpoints=sorted(self.endpoints()))

    def is_streaming(self, endpoint: str) -> bool:
        return bool(self.endpoints()[endpoint]._pydantic_models_by_endpoint[endpoint]['is_generator'])

    def parameters_schema(self, endpoint: str) -> dict[str, Any]:
        """The JSON schema of an endpoint's parameters; empty if its executor tells none."""
        discovered, _ = self.endpoints()[endpoint]._endpoints_proto
        told = MessageToDict(discovered.schemas).get(endpoint, {})
        return told.get('parameters', {}).get('model') or {}

    def unknown(self, endpoint: str) -> FinetunerServerError:
        known = ', '.join(sorted(self.endpoints()))
        return FinetunerServerError(f'unknown endpoint {endpoint or "/"!r}: this service has {known}')

    def _route(self, request: DataRequest, **kwargs: Any) -> tuple[asyncio.Future[Any], asyncio.Future[Any] | None]:
        endpoint = request.header.exec_endpoint
        if endpoint != __dry_run_endpoint__:  # which is for all executors
            node = self.endpoints().get(endpoint)
            if node is None:
                return _answer(request, self.unknown(endpoint)), None
            if problem := _problem(request):
                return _answer(request, problem), None
            if self.is_streaming(endpoint):
                return _answer(request, FinetunerServerError(f'{endpoint} streams: call it with stream_doc')), None
            request.header.target_executor = f'{re.escape(node.name)}$'
        return self._forward(request=request, **kwargs)

    async def process_single_data(self, request: DataRequest, context: Any = None) -> DataRequest:
        """Answer one request.

        :param context: of a call over gRPC; HTTP has counted the request already.
        """
        if context is not None:
            await self._admit(request, context)
        return await super().process_single_data(request, context)

    async def stream(
        self, request_iterator: AsyncIterator[DataRequest], context: Any = None, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Request]:
        """Answer a stream of requests. One that is too fast has to wait."""

        async def paced() -> AsyncIterator[DataRequest]:
            async for request in request_iterator:
                await _check_readable(request, context)
                while wait := self.buckets.take(_caller(request, context)):
                    await asyncio.sleep(wait)
                yield request

        async for answer in super().stream(paced(), context, *args, **kwargs):
            yield answer

    Call = stream

    async def _admit(self, request: DataRequest | SingleDocumentRequest, context: Any) -> None:
        """Refuse a call that cannot be read, and one of a caller who calls too often."""
        await _check_readable(request, context)
        if wait := self.buckets.take(_caller(request, context)):
            metadata = (('retry-after', str(math.ceil(wait))),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, self.buckets.sentence(wait), metadata)

    async def stream_doc(self, request: SingleDocumentRequest, context: Any = None) -> AsyncIterator[Request]:
        """Send a streaming request to the executor that has its endpoint.

        Jina drops the parameters of a streaming request on the way to the executor: they travel in the document's tags.
        """
        if context is not None:
            await self._admit(request, context)
        endpoint = request.header.exec_endpoint
        node = self.endpoints().get(endpoint)
        if problem := _problem(request):
            request.add_exception(problem)
            yield request
            return
        if node is None or not self.is_streaming(endpoint):
            wrong = self.unknown(endpoint) if node is None else FinetunerServerError(f'{endpoint} does not stream')
            request.add_exception(wrong)
            yield request
            return
        if request.parameters:
            request.document_cls = Document
            document = request.data.doc
            document.tags = {**document.tags, **request.parameters}
            request.data.doc = document
        pool = self.streamer._connection_pool
        try:
            # Not through the pool's own method: it hides what an endpoint raises, and starts broken streams again.
            connection = await pool._connections.get_replicas(node.name, True).get_next_connection(num_retries=1)
            async for response, _ in connection.send_single_doc_request(
                request, metadata=(('endpoint', endpoint),), compression=pool.compression
            ):
                yield response
        except grpc.aio.AioRpcError as error:
            _set_error(request, error, node.name)
            yield request

    def _http_fastapi_default_app(self, **kwargs: Any) -> FastAPI:
        title, description, cors = kwargs.get('title'), kwargs.get('description'), bool(kwargs['cors'])
        return build_app(self, title=title, description=description, cors=cors, buckets=self.buckets)


async def _check_readable(request: DataRequest | SingleDocumentRequest, context: Any) -> None:
    try:
        request.proto_wo_data  # noqa: B018
    except DecodeError:
        detail = 'the message cannot be read: it is broken, or its parameters nest too deep'
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, detail)


def _caller(request: DataRequest | SingleDocumentRequest, context: Any) -> str:
    """Who sent a request over gRPC: a token, or else an address."""
    fields = request.proto_wo_data.parameters.fields
    if 'token' in fields and fields['token'].string_value:
        return fields['token'].string_value
    return f'address {context.peer().rpartition(":")[0].partition(":")[2]}'


def _problem(request: DataRequest | SingleDocumentRequest) -> Exception | None:
    """What is wrong with the parameters of a message: Jina would fail over a number that is none."""
    try:
        request.parameters  # noqa: B018
    except (SerializeToJsonError, ValueError):
        request.proto_wo_data.parameters.Clear()
        return ParameterError('parameters: a number is NaN or infinite')
    return None


# how gRPC tells what a handler raised
RAISED = re.compile(r"Unexpected <class '(?:\w+\.)*(\w+)'>: (.*)", re.DOTALL)


def _set_error(request: SingleDocumentRequest, error: grpc.aio.AioRpcError, executor: str) -> None:
    details = error.details() or ''
    raised = RAISED.fullmatch(details)
    if raised is None:
        request.add_exception(FinetunerServerError(f'the executor {executor} broke off the stream: {details}'))
        return
    name, message = raised.groups()
    status = request.header.status
    status.code = jina_pb2.StatusProto.ERROR
    status.description = message
    status.exception.name = name
    status.exception.args.append(message)
    status.exception.executor = executor


def _answer(request: DataRequest, error: Exception) -> asyncio.Future[DataRequest]:
    request.add_exception(error)
    future: asyncio.Future[DataRequest] = asyncio.get_running_loop().create_future()
    future.set_result(request)
    return future


class FinetunerGateway(CompositeGateway):
    """Jina's gateway for several protocols, with our request handler, limits, and TLS where the environment asks."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs['req_handler_cls'] = RoutingRequestHandler
        super().__init__(**kwargs)
        certificate = read_certificate()
        for server in self.servers:
            if isinstance(server, FastAPIBaseServer):
                _prepare_http(server, certificate)
            else:
                _prepare_grpc(server, certificate)
        end_with_parent()
        drain_at_shutdown()

    async def setup_server(self) -> None:
        """Start the servers. They give up when the Flow does: an executor that failed would be awaited for ever."""
        for server in self.servers:
            server.is_cancel = self.is_cancel
            if isinstance(server, FastAPIBaseServer):
                server.uvicorn_kwargs['timeout_graceful_shutdown'] = math.ceil(drain_seconds())
        await super().setup_server()


def _prepare_http(server: FastAPIBaseServer, certificate: Certificate | None) -> None:
    server.uvicorn_kwargs |= {
        'access_log': False,  # a query may hold what is secret
        'http': PatientProtocol,
        'h11_max_incomplete_event_size': MAX_HEADER_BYTES,
        'server_header': False,
    }
    if certificate is not None:
        server.uvicorn_kwargs |= {'ssl_certfile': str(certificate.path), 'ssl_keyfile': str(certificate.key)}


def _prepare_grpc(server: Any, certificate: Certificate | None) -> None:
    options = {'grpc.max_receive_message_length': max_body()}
    server.grpc_server_options = {**(server.grpc_server_options or {}), **options}
    if certificate is not None:
        server.ssl_certfile, server.ssl_keyfile = str(certificate.path), str(certificate.key)
