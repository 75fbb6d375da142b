"""A service without Jina: a gRPC server in this process whose endpoints are functions of the test."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from finetuner.client import session, wire_pb2
from finetuner.client.channel import open_channel

TOKEN = 'a-token-of-the-test'


class Service:
    """`endpoints[name](parameters, documents)` answers with documents, one dict of tags, or raises."""

    def __init__(self, port: int):
        self.host = f'grpc://localhost:{port}'
        self.endpoints: dict[str, Callable[..., Any]] = {'/whoami': lambda parameters, documents: {'account': 'local'}}
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def process_single_data(self, request: Any, context: Any) -> Any:
        from docarray.proto import DocListProto

        from finetuner.documents import DocumentArray

        documents = DocumentArray.from_protobuf(DocListProto.FromString(request.data.docs))
        response = wire_pb2.DataRequest(header=request.header)
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

        if parameters.pop('token', None) != TOKEN:
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
