"""A service without Jina: a gRPC server, or one of HTTP, in this process, whose endpoints are functions of the test."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from finetuner.client import session, wire_pb2
from finetuner.client.channel import open_channel
from finetuner.excepts import UnavailableError

TOKEN = 'a-token-of-the-test'


def _missing(parameters: dict[str, Any], documents: Any) -> Any:
    from finetuner.excepts import NotFoundError

    raise NotFoundError(f'There is no data set {parameters["name"]!r}')


class Service:
    """`endpoints[name](parameters, documents)` answers with documents, one dict of tags, or raises.

    :param turned_away: (status, trailing metadata) of the next answers over gRPC, in place of these.
    """

    def __init__(self, port: int):
        self.host = f'grpc://localhost:{port}'
        self.endpoints: dict[str, Callable[..., Any]] = {
            '/whoami': lambda parameters, documents: {'account': 'local'},
            '/dataset': _missing,
        }
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.turned_away: list[tuple[grpc.StatusCode, dict[str, str]]] = []
        self.needs_token = True
        self.unknown_for = 0  # calls that the gateway answers by itself, as if the executor had yet to start

    def process_single_data(self, request: Any, context: Any) -> Any:
        from docarray.proto import DocListProto

        from finetuner.documents import DocumentArray

        if context is not None and self.turned_away:
            code, metadata = self.turned_away.pop(0)
            context.set_trailing_metadata(tuple(metadata.items()))
            context.abort(code, 'the reason of the service')
        documents = DocumentArray.from_protobuf(DocListProto.FromString(request.data.docs))
        response = wire_pb2.DataRequest(header=request.header)
        if self.unknown_for:
            self.unknown_for -= 1
            self._fail(response.header.status, UnavailableError('it is not known yet'))
            response.header.status.exception.executor = ''
            return response
        try:
            answer = self._answer(request.header.exec_endpoint, MessageToDict(request.parameters), documents)
            response.data.docs = DocumentArray(answer).to_protobuf().SerializeToString()
        except Exception as error:
            self._fail(response.header.status, error)
        return response

    def stream_doc(self, request: Any, context: Any) -> Any:
        from docarray.proto import DocProto

        from finetuner.documents import Document

        document = Document.from_protobuf(DocProto.FromString(request.document))
        for answer in self._answer(request.header.exec_endpoint, dict(document.tags), [document]):
            yield wire_pb2.SingleDocumentRequest(document=answer.to_protobuf().SerializeToString())

    def _answer(self, endpoint: str, parameters: dict[str, Any], documents: Any) -> Any:
        from finetuner.documents import Document
        from finetuner.excepts import AuthenticationError

        if parameters.pop('token', None) != TOKEN and self.needs_token:
            raise AuthenticationError('the token is unknown')
        self.calls.append((endpoint, parameters))
        answer = self.endpoints[endpoint](parameters, documents)
        return [Document(tags=answer)] if isinstance(answer, dict) else answer

    def _fail(self, status: Any, error: Exception) -> None:
        status.code = 1
        status.description = repr(error)
        status.exception.name = type(error).__name__
        status.exception.args.extend(str(argument) for argument in error.args)
        status.exception.executor = 'Test'

    def parameters(self, endpoint: str) -> list[dict[str, Any]]:
        """Of each call that was more than a check."""
        return [parameters for name, parameters in self.calls if name == endpoint and 'check_only' not in parameters]


@pytest.fixture
def service(monkeypatch):
    """A service that knows TOKEN, and clients that know the service."""
    server = grpc.server(ThreadPoolExecutor(4), options=[('grpc.max_receive_message_length', -1)])
    service = Service(server.add_insecure_port('localhost:0'))
    single = grpc.unary_unary_rpc_method_handler(
        service.process_single_data, wire_pb2.DataRequest.FromString, wire_pb2.DataRequest.SerializeToString
    )
    stream = grpc.unary_stream_rpc_method_handler(
        service.stream_doc,
        wire_pb2.SingleDocumentRequest.FromString,
        wire_pb2.SingleDocumentRequest.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler('jina.JinaSingleDataRequestRPC', {'process_single_data': single}),
            grpc.method_handlers_generic_handler('jina.JinaSingleDocumentRequestRPC', {'stream_doc': stream}),
        ]
    )
    server.start()
    monkeypatch.setattr(session, '_current', None)
    monkeypatch.setenv('FINETUNER_HOST', service.host)
    monkeypatch.setenv('FINETUNER_TOKEN', TOKEN)
    yield service
    open_channel(service.host).close()
    server.stop(None)


class HttpServer(ThreadingHTTPServer):
    """The endpoints of a `Service` over HTTP.

    :param turned_away: (status, headers) of the next answers, in place of those of the service; status None breaks the
        connection off.
    """

    daemon_threads = True

    def __init__(self, service: Service):
        super().__init__(('127.0.0.1', 0), Handler)
        self.service = service
        self.host = f'http://localhost:{self.server_port}'
        self.turned_away: list[tuple[int | None, dict[str, str]]] = []
        self.connections: set[Any] = set()
        self.requests: list[tuple[str, str]] = []
        self.sockets: list[socket.socket] = []

    def end_connections(self) -> None:
        """End the connections that are open, without a word of TLS."""
        while self.sockets:
            with contextlib.suppress(OSError):
                self.sockets.pop().shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    server: HttpServer
    protocol_version = 'HTTP/1.1'

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers['Content-Length']))
        self.server.connections.add(self.client_address)
        self.server.sockets.append(self.connection)
        self.server.requests.append((self.path, self.headers['Content-Type']))
        if self.server.turned_away:
            status, headers = self.server.turned_away.pop(0)
            if status is None:
                self.close_connection = True
                return
            detail = {'detail': 'the reason of the service'}
            self._answer(status, json.dumps(detail).encode(), {'Content-Type': 'application/json', **headers})
            return
        request = wire_pb2.DataRequest.FromString(body)
        assert self.path.removeprefix('/base') == request.header.exec_endpoint
        response = self.server.service.process_single_data(request, None)
        self._answer(200, response.SerializeToString(), {'Content-Type': 'application/x-protobuf'})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, 'Content-Length': str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def http(service, monkeypatch):
    """The service over HTTP, which clients are told to use."""
    server = HttpServer(service)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv('FINETUNER_HOST', server.host)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run_record():
    """The tags of a run, each time further: CREATED, STARTED, FINISHED."""

    def make(*statuses: str, **fields: Any) -> Callable[..., dict[str, Any]]:
        told = itertools.chain(statuses, itertools.repeat(statuses[-1]))
        return lambda parameters, documents: {
            'name': 'brisk-heron',
            'experiment_name': 'default',
            'status': next(told),
            'details': '',
            'artifact_id': '0123456789abcdef01234567',
            'created_at': '2026-01-02T03:04:05+00:00',
            'config': {'epochs': 3},
            'progress': {},
            **fields,
        }

    return make
