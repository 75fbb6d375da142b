"""The gateway of the Flows: one gRPC and one HTTP port in front of several executors.

Jina's own gateway lets a request for an unknown endpoint pass as if it had succeeded, sends every streaming request to
the first executor, and refuses to start a Flow whose executors do not share their endpoints. This one asks the
executors for their endpoints and sends each request to the executor that has its endpoint.
"""

import asyncio
import math
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
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

from executors.calling_off import FOR_CALLER, called_off_with_caller, let_calls_be_cancelled, watch
from executors.discovery import Discovery
from executors.drain import drain_seconds
from executors.errors import UNREACHABLE, message_of
from executors.forwarding import forward, measure_messages_as_they_are
from executors.lifetime import tend_process
from executors.limits import MAX_HEADER_BYTES, PatientProtocol
from executors.log_records import log_as_jina_does
from executors.pacing import Pacing, read_options
from executors.rate import MAX_STREAMS, REQUESTS_AT_ONCE, TOO_MANY_AT_ONCE, Buckets, Room, Streams, max_body
from executors.rest import build_app
from executors.tls import Certificate, read_certificate
from finetuner.documents import Document
from finetuner.excepts import DataError, FinetunerServerError, ParameterError, UnavailableError

# documents may stand in a message, or be serialized on their own
NOT_PARSED = {
    f"Error parsing message with type '{message}'" for message in ('jina.DataRequestProto', 'docarray.DocListProto')
}
BROKEN_DOCUMENTS = 'the documents of the message cannot be read: they are broken, or of another version of docarray'
FLOATING = 1.0
"""Seconds that requests to executors that nobody waits for may take to end when all others have."""


class TooManyStreams(FinetunerServerError):
    """A caller has as many streams open as there may be."""


class RoutingRequestHandler(GatewayRequestHandler):
    """Sends each request to the executor that has its endpoint, and answers the others with the list of endpoints."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.discovery = Discovery(self.streamer.topology_graph, self.streamer._connection_pool, self.logger)
        self.buckets = Buckets.from_environment()
        self._streams = Streams()
        self._room = Room(max_body() * REQUESTS_AT_ONCE)  # for gRPC; bodies over HTTP are counted as they come in
        # The executors stand side by side: they are no pipeline, whose schemas would have to fit.
        self.streamer._get_endpoints_input_output_models = self.discovery.wait
        self.streamer._validate_flow_docarray_compatibility = lambda: None
        # what Jina alone can do: its own metrics, and conditions between executors
        has_metrics = kwargs.get('metrics_registry') is not None or kwargs.get('meter') is not None
        self._needs_graph = has_metrics or self.streamer.topology_graph.has_filter_conditions
        self._through_graph = self.streamer._streamer._request_handler
        self.streamer._streamer._request_handler = self._route  # of the requests in gRPC streams

    async def close(self) -> None:
        """Nothing: the server that ends first calls this, and requests at work in the others need the connections."""

    async def close_connections(self) -> None:
        await self.discovery.close()
        with suppress(TimeoutError):  # for Jina, a stream that broke off is never over
            async with asyncio.timeout(FLOATING):
                await self.streamer._streamer.wait_floating_requests_end()
        await self.streamer._connection_pool.close()

    @property
    def endpoints(self) -> dict[str, Any]:
        """The node of the Flow's graph that has each endpoint, by endpoint, as far as they have told."""
        return self.discovery.endpoints

    async def endpoint_discovery(self, empty: Any, context: Any) -> jina_pb2.EndpointsProto:
        return jina_pb2.EndpointsProto(endpoints=sorted(self.endpoints))

    async def dry_run(self, empty: Any, context: Any) -> jina_pb2.StatusProto:
        """Whether every executor answers, is well, and can be asked for what it has. Jina does not read the answers."""
        if missing := self.discovery.missing():
            problems = [_has_not_answered(missing)]
        else:
            problems = await asyncio.gather(*map(self._problem_of, self.discovery.nodes()))
        for problem in filter(None, problems):
            return jina_pb2.StatusProto(code=jina_pb2.StatusProto.ERROR, description=problem)
        return jina_pb2.StatusProto(code=jina_pb2.StatusProto.SUCCESS)

    async def _problem_of(self, node: Any) -> str:
        """What is wrong with an executor; empty if nothing is."""
        request = DataRequest()
        request.header.exec_endpoint = __dry_run_endpoint__
        try:
            answer = await forward(request, node, self.streamer._connection_pool)
        except grpc.aio.AioRpcError as error:
            return f'the executor {node.name} does not answer: {error.details()}'
        status = answer.proto_wo_data.header.status
        if status.code == jina_pb2.StatusProto.ERROR:
            return f'the executor {node.name} is not well: {message_of(status)}'
        return ''

    def is_streaming(self, endpoint: str) -> bool:
        return _is_streaming(self.endpoints[endpoint], endpoint)

    def parameters_schema(self, endpoint: str) -> dict[str, Any]:
        """The JSON schema of an endpoint's parameters; empty if its executor tells none."""
        discovered, _ = self.endpoints[endpoint]._endpoints_proto
        told = MessageToDict(discovered.schemas).get(endpoint, {})
        return told.get('parameters', {}).get('model') or {}

    def unknown(self, endpoint: str) -> FinetunerServerError:
        """The error that tells that no executor has an endpoint, or that none is known that has."""
        if missing := self.discovery.missing():
            return UnavailableError(f'{endpoint} is not known yet: {_has_not_answered(missing)}, try again')
        known = ', '.join(sorted(self.endpoints))
        return FinetunerServerError(f'unknown endpoint {endpoint or "/"!r}: this service has {known}')

    def _refusal(self, request: DataRequest) -> Exception | None:
        """What is wrong with a request, if anything is, before its executor is asked."""
        endpoint = request.header.exec_endpoint
        node = self.endpoints.get(endpoint)
        if node is None:
            return self.unknown(endpoint)
        if problem := _problem(request):
            return problem
        if _is_streaming(node, endpoint):
            return FinetunerServerError(f'{endpoint} streams: call it with stream_doc')
        return None

    def _route(self, request: DataRequest, **kwargs: Any) -> tuple[asyncio.Future[Any], asyncio.Future[Any] | None]:
        endpoint = request.header.exec_endpoint
        if endpoint != __dry_run_endpoint__:  # which is for all executors
            if refusal := self._refusal(request):
                return _answer(request, refusal), None
            node = self.endpoints[endpoint]
            if not self._needs_graph:
                answer = asyncio.ensure_future(forward(request, node, self.streamer._connection_pool))
                watch(endpoint, answer)
                return answer, None
            request.header.target_executor = f'{re.escape(node.name)}$'
        answer, floating = self._through_graph(request=request, **kwargs)
        watch(endpoint, answer)
        return answer, floating

    async def process_single_data(self, request: DataRequest, context: Any = None) -> DataRequest:
        """Answer one request.

        :param context: of a call over gRPC; HTTP has counted the request already.
        """
        async with self._admitted(request, context) if context is not None else nullcontext():
            try:
                return _for_caller(await self._process(request))
            except InternalNetworkError as error:
                self.logger.error(f'no answer to {request.header.exec_endpoint}: {error.details()}')
                if context is None:
                    raise
                await context.abort(error.code(), error.details(), error.trailing_metadata() or ())

    async def _process(self, request: DataRequest) -> Any:
        endpoint = request.header.exec_endpoint
        if endpoint in FOR_CALLER and not self._needs_graph:  # it ends with the caller, who awaits it
            if refusal := self._refusal(request):
                request.add_exception(refusal)
                return request
            return await forward(request, self.endpoints[endpoint], self.streamer._connection_pool)
        with called_off_with_caller():
            answer, _ = self._route(request, return_type=None)
            # who has gone ends what is for them alone, and nothing else
            return self.streamer._streamer._result_handler(await asyncio.shield(answer))

    async def stream(
        self, request_iterator: AsyncIterator[DataRequest], context: Any = None, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Request]:
        """Answer a stream of requests over gRPC. One that is too fast, or has too much under way, has to wait."""

        async def admit(request: DataRequest) -> None:
            await _check_readable(request, context)
            while wait := self.buckets.take(*_caller(request, context)):
                await asyncio.sleep(wait)

        in_order, at_once = read_options(context)
        pacing = Pacing(at_once, self._room, admit)
        options = {'results_in_order': in_order, 'prefetch': sys.maxsize}  # Jina would keep the processor busy waiting
        try:
            with called_off_with_caller():
                async for answer in super().stream(pacing.pace(request_iterator), None, **options):
                    pacing.answered()
                    yield _for_caller(answer)
        except InternalNetworkError as error:
            await context.abort(error.code(), error.details(), error.trailing_metadata() or ())
        finally:
            pacing.end()

    Call = stream

    @asynccontextmanager
    async def _admitted(self, request: DataRequest | SingleDocumentRequest, context: Any) -> AsyncIterator[None]:
        """Refuse a call that cannot be read, one of a caller who calls too often, and one that there is no room for."""
        size = len(request.buffer or b'')
        if not self._room.take(size):
            await _refuse(context, TOO_MANY_AT_ONCE, 1.0)
        try:
            await _check_readable(request, context)
            if wait := self.buckets.take(*_caller(request, context)):
                await _refuse(context, self.buckets.sentence(wait), wait)
            yield
        finally:
            self._room.free(size)

    async def stream_doc(self, request: SingleDocumentRequest, context: Any = None) -> AsyncIterator[Request]:
        """Send a streaming request to the executor that has its endpoint.

        Jina drops the parameters of a streaming request on the way to the executor: they travel in the document's tags.
        """
        async with self._admitted(request, context) if context is not None else nullcontext():
            caller = _streamer(request, context)
            if not self._streams.open(caller):
                request.add_exception(TooManyStreams(f'more than {MAX_STREAMS} streams at once: end one of them'))
                yield request
                return
            try:
                async for answer in self._stream(request):
                    yield _for_caller(answer)
            finally:
                self._streams.close(caller)

    async def _stream(self, request: SingleDocumentRequest) -> AsyncIterator[Request]:
        endpoint = request.header.exec_endpoint
        node = self.endpoints.get(endpoint)
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


def _is_streaming(node: Any, endpoint: str) -> bool:
    return bool(node._pydantic_models_by_endpoint[endpoint]['is_generator'])


def _for_caller(answer: Any) -> Any:
    """An answer without where in the code an error was raised: the log of the executor tells that."""
    status = answer.proto_wo_data.header.status  # its own `header` would read the documents, too
    if status.exception.stacks:
        del status.exception.stacks[:]
    if status.exception.name == DecodeError.__name__ and NOT_PARSED.intersection(status.exception.args):
        status.exception.name, status.description = DataError.__name__, BROKEN_DOCUMENTS
        status.exception.args[:] = [BROKEN_DOCUMENTS]
        # who reads the answer could not read the documents either
        answer.proto_wo_data.DiscardUnknownFields()
        if answer.is_decompressed_with_data:
            answer.proto_wo_data.ClearField('data')
    return answer


def _has_not_answered(executors: list[str]) -> str:
    several = len(executors) > 1
    names = f'executor{"s" if several else ""} {" and ".join(executors)}'
    return f'the {names} {"have" if several else "has"} not answered since the gateway started'


async def _refuse(context: Any, sentence: str, wait: float) -> None:
    metadata = (('retry-after', str(math.ceil(wait))),)
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, sentence, metadata)


async def _check_readable(request: DataRequest | SingleDocumentRequest, context: Any) -> None:
    try:
        request.proto_wo_data  # noqa: B018
    except DecodeError:
        detail = 'the message cannot be read: it is broken, or its parameters nest too deep'
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, detail)


def _caller(request: DataRequest | SingleDocumentRequest, context: Any) -> tuple[str, str | None]:
    """Who sent a request over gRPC: an address, and a token if there is one."""
    fields = request.proto_wo_data.parameters.fields
    token = fields['token'].string_value if 'token' in fields else ''
    return context.peer().rpartition(':')[0].partition(':')[2], token or None


def _streamer(request: SingleDocumentRequest, context: Any) -> str:
    """Who asks for a stream: HTTP sends the token among the document's tags."""
    if context is not None:
        address, token = _caller(request, context)
        return token or f'address {address}'
    request.document_cls = Document
    return str((request.data.doc.tags or {}).get('token', ''))


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
        kind = UnavailableError if error.code() in UNREACHABLE else FinetunerServerError
        request.add_exception(kind(f'the executor {executor} broke off the stream: {details}'))
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

    handler_class: Callable[..., RoutingRequestHandler] = RoutingRequestHandler

    def __init__(self, **kwargs: Any) -> None:
        kwargs['req_handler_cls'] = self.handler_class
        let_calls_be_cancelled()
        measure_messages_as_they_are()
        super().__init__(**kwargs)
        log_as_jina_does(self.logger, self.name or '')
        certificate = read_certificate()
        for server in self.servers:
            if isinstance(server, FastAPIBaseServer):
                _prepare_http(server, certificate)
            else:
                _prepare_grpc(server, certificate)
        tend_process()

    async def setup_server(self) -> None:
        """Start the servers. They give up when the Flow does: an executor that failed would be awaited for ever."""
        for server in self.servers:
            server.is_cancel = self.is_cancel
            if isinstance(server, FastAPIBaseServer):
                server.uvicorn_kwargs['timeout_graceful_shutdown'] = math.ceil(drain_seconds())
        await super().setup_server()

    async def shutdown(self) -> None:
        await super().shutdown()
        await self._request_handler.close_connections()


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
