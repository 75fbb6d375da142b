"""The channel against a real Flow."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from jina import Executor, Flow, requests

from finetuner.client.answers import Answer, read_answers
from finetuner.client.channel import Channel, open_channel
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import DataError, FinetunerServerError
from tests.flows import run_flow


class Echo(Executor):
    @requests(on='/tell')
    def tell(self, docs: DocumentArray, parameters: dict, **kwargs) -> DocumentArray:
        tags = {**parameters, 'texts': docs.texts if len(docs) else [], 'deep': {'list': [1, 2.5, None, True]}}
        return DocumentArray([Document(text='told', blob=b'\x00\xff', tags=tags)])

    @requests(on='/refuse')
    def refuse(self, docs: DocumentArray, **kwargs) -> DocumentArray:
        raise DataError('document 3 has no text')

    @requests(on='/crash')
    def crash(self, docs: DocumentArray, **kwargs) -> DocumentArray:
        raise ZeroDivisionError('division by zero')

    @requests(on='/sleep')
    def sleep(self, docs: DocumentArray, **kwargs) -> DocumentArray:
        time.sleep(1)
        return docs

    @requests(on='/count')
    async def count(self, doc: Document, **kwargs) -> Document:
        for number in range(doc.tags['until']):
            yield Document(text=f'{number} {doc.tags["word"]}', tags={'number': number})


def free_port():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def build(port: int) -> Flow:
    return Flow(port=port, protocol='grpc').add(uses=Echo, quiet_error=True)


@pytest.fixture(scope='module')
def host():
    port = free_port()
    with run_flow(build, port):
        yield f'grpc://localhost:{port}'


def test_a_call_carries_parameters_and_documents_both_ways(host):
    docs = DocumentArray([Document(text='one'), Document(text='zwei ∞')]).to_protobuf().SerializeToString()
    (answer,) = read_answers(open_channel(host).call('/tell', {'name': 'x', 'part': 3, 'ok': True}, docs))
    assert (answer.text, answer.blob) == ('told', b'\x00\xff')
    assert answer.tags == {
        'name': 'x',
        'part': 3,
        'ok': True,
        'texts': ['one', 'zwei ∞'],
        'deep': {'list': [1, 2.5, None, True]},
    }


def test_a_call_needs_no_documents(host):
    (answer,) = read_answers(open_channel(host).call('/tell', {}))
    assert answer.tags['texts'] == []


def test_large_messages_pass(host):
    docs = DocumentArray([Document(text='x' * (20 << 20))]).to_protobuf().SerializeToString()
    (answer,) = read_answers(open_channel(host).call('/tell', {}, docs))
    assert len(answer.tags['texts'][0]) == 20 << 20


def test_errors_are_raised_as_what_they_are(host):
    with pytest.raises(DataError, match='^document 3 has no text$'):
        open_channel(host).call('/refuse', {})
    with pytest.raises(FinetunerServerError, match='division by zero.*ZeroDivisionError in Echo'):
        open_channel(host).call('/crash', {})
    open_channel(host).call('/tell', {})


def test_a_stream_yields_documents_as_they_come(host):
    answers = list(open_channel(host).stream('/count', {'until': 3, 'word': 'times'}))
    assert answers == [Answer(text=f'{number} times', tags={'number': number}) for number in range(3)]


def test_a_stream_can_be_left(host):
    stream = open_channel(host).stream('/count', {'until': 1_000_000, 'word': 'times'})
    assert next(stream).text == '0 times'
    stream.close()
    open_channel(host).call('/tell', {})


def test_a_late_answer_is_an_error_that_says_so(host):
    with pytest.raises(FinetunerServerError, match='did not answer /sleep within 0.2 seconds'):
        open_channel(host).call('/sleep', {}, timeout=0.2)


def test_a_channel_is_kept_and_a_forked_child_has_its_own(host, run_python):
    printed = run_python(
        """
        import os, sys
        from finetuner.client.channel import open_channel

        channel = open_channel(sys.argv[1])
        assert open_channel(sys.argv[1]) is channel
        channel.call('/tell', {})
        assert channel.is_ready()
        child = os.fork()
        if child == 0:
            own = open_channel(sys.argv[1])
            own.call('/tell', {}, timeout=10)
            print('a channel of its own' if own is not channel else "the parent's", flush=True)
            os._exit(0)
        print('the child ended with', os.waitpid(child, 0)[1])
        channel.call('/tell', {})
        """,
        host,
    )
    assert 'a channel of its own' in printed
    assert 'the child ended with 0' in printed


def test_threads_share_a_channel(host):
    def ask(number):
        (answer,) = read_answers(open_channel(host).call('/tell', {'number': number}))
        return answer.tags['number']

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(100))) == list(range(100))


def test_nobody_there_is_an_error_that_names_host_and_remedy():
    host = f'grpc://localhost:{free_port()}'
    start = time.monotonic()
    with pytest.raises(FinetunerServerError, match=f'no service answers at {host}: .*`finetuner serve`'):
        open_channel(host).call('/tell', {})
    with pytest.raises(FinetunerServerError, match='no service answers'):
        list(open_channel(host).stream('/count', {}))
    assert not open_channel(host).is_ready()
    assert time.monotonic() - start < 3


def test_a_service_that_comes_back_is_found_again():
    port = free_port()
    channel = open_channel(f'localhost:{port}')
    for _ in range(2):
        with run_flow(build, port):
            deadline = time.monotonic() + 10
            while not channel.is_ready():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            channel.call('/tell', {})
        with pytest.raises(FinetunerServerError):
            channel.call('/tell', {})


def test_a_service_that_comes_back_is_found_while_the_errors_from_before_are_kept():
    port = free_port()
    channel, errors = open_channel(f'localhost:{port}'), []
    for _ in range(3):
        with pytest.raises(FinetunerServerError) as raised:
            channel.call('/tell', {})
        errors.append(raised.value)  # whose traceback keeps the connection that failed
    with run_flow(build, port):
        channel.call('/tell', {})


@pytest.mark.parametrize('host', ['http://localhost:51001', 'grpc://', 'grpc://name/path', 'ftp://name'])
def test_other_addresses_are_refused(host):
    with pytest.raises(ValueError, match='write grpc://name:port'):
        Channel(host)


@pytest.mark.parametrize('host', ['name', 'name:1234', 'grpcs://name', 'grpc://[::1]:51000'])
def test_addresses(host):
    Channel(host).close()
