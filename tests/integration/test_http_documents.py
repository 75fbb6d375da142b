"""Every field of a document through stock gateways: JSON over HTTP, and gRPC."""

import socket

import numpy as np
import pytest
import requests
from docarray import DocList
from jina import Client, Executor, Flow
from jina import requests as endpoint
from jina.excepts import BadServer

from finetuner.codec import Base64Bytes
from finetuner.documents import Content, Document, DocumentArray
from tests.flows import run_flow


class EchoExecutor(Executor):
    @endpoint(on='/echo')
    def echo(self, docs: DocumentArray, **kwargs) -> DocumentArray:
        return docs

    @endpoint(on='/echo_list')
    def echo_list(self, docs: DocList[Document], **kwargs) -> DocList[Document]:
        return docs

    @endpoint(on='/make')
    def make(self, docs: DocumentArray, **kwargs) -> DocumentArray:
        chunk = Content(id='inner', blob=Base64Bytes(b'\xff\x00'), embedding=np.ones(2, np.float32))
        return DocumentArray([Document(id='made', blob=Base64Bytes(b'\x00\xff\xfe'), chunks=[chunk])])

    @endpoint(on='/types')
    def types(self, docs: DocumentArray, **kwargs) -> DocumentArray:
        """For each document, the types its fields had here."""
        return DocumentArray(
            Document(tags={name: type(value).__name__ for name, value in doc.__dict__.items()}) for doc in docs
        )


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


EVERY_FIELD = {
    'id': 'a',
    'text': 'Straße 東京 🙂',
    'uri': 'https://example.com/a.png',
    'blob': 'AP/+gA==',
    'tensor': [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
    'modality': 'image',
    'embedding': [0.5, -1.25, 3.0],
    'tags': {'finetuner_label': 'x', 'nested': {'list': [1, 2.5, 'ü', None, True, {'deep': []}], 'empty': {}}},
    'chunks': [
        {
            'id': 'b',
            'text': 'part',
            'uri': None,
            'blob': '/w==',
            'tensor': [[0.5]],
            'modality': None,
            'embedding': [1.0, 2.0],
            'tags': {'n': [1]},
        },
        {
            'id': None,
            'text': None,
            'uri': 'u',
            'blob': None,
            'tensor': None,
            'modality': 'text',
            'embedding': None,
            'tags': {},
        },
    ],
}


def build(ports: list[int]) -> Flow:
    return Flow(protocol=['grpc', 'http'], port=ports).add(uses=EchoExecutor)


@pytest.fixture(scope='module')
def ports():
    ports = free_ports(2)
    with run_flow(build, ports):
        yield ports


@pytest.fixture(scope='module')
def post(ports):
    def call(path: str, data, **body) -> requests.Response:
        return requests.post(f'http://localhost:{ports[1]}{path}', json={'data': data, **body}, timeout=30)

    return call


@pytest.fixture(scope='module')
def client(ports):
    return Client(host=f'grpc://localhost:{ports[0]}')


@pytest.mark.parametrize('path', ['/echo', '/echo_list'])
def test_json_carries_every_field(post, path):
    answer = post(path, [EVERY_FIELD])
    assert (answer.status_code, answer.json()['data']) == (200, [EVERY_FIELD])


def test_executors_meet_the_fields_types(post):
    types = post('/types', [EVERY_FIELD]).json()['data'][0]['tags']
    assert types == {
        'id': 'ID',
        'text': 'str',
        'uri': 'str',
        'blob': 'Base64Bytes',
        'tensor': 'NdArray',
        'modality': 'str',
        'embedding': 'NdArray',
        'tags': 'dict',
        'chunks': 'DocList',
    }


@pytest.mark.parametrize('data', [[{'text': 'a'}], {'text': 'a'}, [{'text': 'a', 'chunks': None}]])
def test_json_may_leave_fields_out(post, data):
    answer = post('/echo', data)
    assert answer.status_code == 200
    (document,) = answer.json()['data']
    assert document.pop('text') == 'a' and document.pop('tags') == {}
    assert set(document.values()) == {None}


def test_json_of_chunks_may_leave_fields_out(post):
    answer = post('/echo', [{'chunks': [{'text': 'a'}, {}]}, {'chunks': []}])
    assert answer.status_code == 200
    first, second = answer.json()['data']
    assert [chunk['text'] for chunk in first['chunks']] == ['a', None]
    assert second['chunks'] == []


def test_blobs_made_for_json_are_base64(post):
    (made,) = post('/make', []).json()['data']
    assert made['blob'] == 'AP/+' and made['chunks'][0]['blob'] == '/wA='


@pytest.mark.parametrize(
    ('document', 'reason'),
    [
        ({'id': 'b', 'blob': 'no base64!'}, "document 1 (id 'b'), field 'blob': the text is not base64"),
        ({'id': 'b', 'blob': 5}, "document 1 (id 'b'), field 'blob': expected bytes, or base64 text, got an integer"),
        ({'chunks': [{'blob': '?'}]}, "document 1, field 'chunks': chunk 0, field 'blob': the text is not base64"),
    ],
)
def test_malformed_blobs_are_named(post, document, reason):
    answer = post('/echo', [{'text': 'a'}, document])
    assert answer.status_code == 500 and reason in answer.json()['detail']
    assert post('/echo', [{'text': 'a'}]).status_code == 200


@pytest.mark.parametrize('document', [{'text': 5}, {'tags': [1]}, {'chunks': [{'text': 5}]}])
def test_json_of_another_shape_is_refused_at_the_gateway(post, document):
    answer = post('/echo', [document])
    assert answer.status_code == 422 and next(iter(document)) in answer.text


def documents() -> DocumentArray:
    return DocumentArray(
        [
            Document(
                id='a',
                text='some text to encode',
                uri='u',
                blob=b'\x00\xff',
                tensor=np.arange(4, dtype='>i2').reshape(2, 2),
                embedding=np.ones(3, np.float32),
                tags={'bytes': b'\xff', 'tuple': (1, {'a'})},
                chunks=[Content(text='part', blob=b'\xff', embedding=np.ones(2, np.float16))],
            ),
            Document(),
        ]
    )


@pytest.mark.parametrize('path', ['/echo', '/echo_list'])
@pytest.mark.parametrize('return_type', [DocumentArray, DocList[Document]])
def test_grpc_carries_every_field(client, path, return_type):
    answer = client.post(on=path, inputs=documents(), return_type=return_type)
    assert isinstance(answer[0], Document) and answer == documents()
    assert answer[0].tensor.dtype == '>i2' and type(answer[0].blob) is bytes


def test_the_documents_read_without_a_return_type(ports):
    answer = Flow(port=ports).post(on='/echo', inputs=documents())
    assert answer[0].text == 'some text to encode' and answer[0].embedding.shape == (3,)
    assert answer[0].blob == b'\x00\xff' and answer[0].chunks[0].blob == b'\xff'
    assert answer[0].tags == {'bytes': b'\xff', 'tuple': (1, {'a'})}


def test_grpc_names_a_malformed_document(client):
    class Wrong(Document):
        text: int = 3

    with pytest.raises(BadServer, match='DataError.*document 1 .*field .*text.*: expected text, got an integer'):
        client.post(on='/echo', inputs=DocumentArray([Document(), Wrong()]), return_type=DocumentArray)
    assert client.post(on='/echo', inputs=documents(), return_type=DocumentArray) == documents()
