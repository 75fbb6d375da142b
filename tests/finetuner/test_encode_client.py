"""EncodeClient against a service that is busy, slow, broken or away, which no real one is when it is asked to be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from finetuner import EncodeClient, settings
from finetuner.client import encode_client
from finetuner.client import wire_pb2 as wire
from finetuner.documents import Document
from finetuner.excepts import BusyError, FinetunerServerError, UnavailableError


class Service:
    """Embeds a text as its length and its first letter. `errors` come before the first answer.

    :param models: what answers one request after the other; the last one goes on.
    """

    def __init__(self, *errors, delay=0.0, dim=2, models=('one',)):
        self.errors, self.delay, self.dim, self.models = list(errors), delay, dim, list(models)
        self.sizes, self.at_once, self.most = [], 0, 0
        self._lock = threading.Lock()

    def call(self, endpoint, parameters, docs=b'', timeout=0.0):
        assert endpoint == '/encode_texts'
        [document] = wire.DocumentList.FromString(docs).docs
        texts = json.loads(document.data['text'].text)
        with self._lock:
            self.sizes.append(len(texts))
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            error = self.errors.pop(0) if self.errors else None
            model = self.models.pop(0) if len(self.models) > 1 else self.models[0]
        time.sleep(self.delay)
        with self._lock:
            self.at_once -= 1
        if error:
            raise error
        rows = np.array([[len(text), ord((text or ' ')[0])][: self.dim] for text in texts], '<f4')
        answer = wire.Document()
        answer.data['blob'].blob = rows.tobytes()
        entries = answer.data['tags'].entries.data
        entries['count'].integer, entries['dim'].integer, entries['dtype'].text = *rows.shape, 'float32'
        entries['model'].text = model
        return wire.DocumentList(docs=[answer]).SerializeToString()


@pytest.fixture
def connect(monkeypatch):
    def use(service, **options):
        monkeypatch.setattr('finetuner.client.reaching.open_transport', lambda host: service)
        return EncodeClient('grpc://nowhere:1', **options)

    return use


def test_a_list_is_split_and_put_together_again_in_order(connect):
    service = Service(delay=0.02)
    texts = [chr(97 + number % 26) * (number % 9) for number in range(103)]
    with connect(service, batch_size=10, prefetch=3) as client:
        found = client.encode(texts)
    assert found[:, 0].tolist() == [len(text) for text in texts]
    assert sorted(service.sizes) == [3] + [10] * 10
    assert service.most == 3


def test_long_texts_go_in_more_requests(connect):
    service = Service()
    with connect(service) as client:
        client.encode(['x' * (3 << 20)] * 3 + ['y'])
    assert sorted(service.sizes) == [1, 1, 2]


def test_a_service_that_is_busy_is_asked_again(connect):
    service = Service(BusyError('try again'), BusyError('try again'))
    with connect(service) as client:
        assert client.encode(['abc']).tolist() == [[3, 97]]
    assert len(service.sizes) == 3


def test_a_service_that_cannot_be_reached_is_told_once(connect, monkeypatch, caplog):
    monkeypatch.setattr(encode_client, 'MAX_PAUSE', 0.01)
    service = Service(BusyError('busy'))
    with connect(service, batch_size=1) as client:
        client.encode(['a'])
        assert not caplog.messages
        service.errors = [UnavailableError('away')] * 9
        client.encode(list('abc'))
        [told] = caplog.messages
        assert told == 'grpc://nowhere:1 cannot be reached yet: trying for 30 s'
        monkeypatch.setattr(encode_client, 'PATIENCE', 0.5)
        time.sleep(0.6)
        service.errors = [UnavailableError('away again')]
        client.encode(['d'])
        assert len(caplog.messages) == 2


def test_embeddings_of_two_models_are_never_put_into_one_array(connect):
    service = Service(models=['old', 'old', 'new'])
    with connect(service, batch_size=2, prefetch=1) as client:
        with pytest.raises(FinetunerServerError, match='another model was promoted at .* meanwhile: encode again'):
            client.encode(list('abcdefgh'))
        assert len(client.encode(list('abcdefgh'))) == 8


@pytest.fixture
def encoding(service, monkeypatch):
    """A real service that encodes; it does not take long to be called in vain."""
    monkeypatch.setattr('finetuner.client.channel.sleep', lambda seconds: None)
    monkeypatch.setattr('finetuner.client.http_channel.sleep', lambda seconds: None)
    monkeypatch.setattr(encode_client, 'MAX_PAUSE', 0.01)
    row = np.array([3, 97], '<f4').tobytes()
    tags = {'count': 1, 'dim': 2, 'dtype': 'float32', 'tokens': 3, 'model': 'one'}
    service.endpoints['/encode_texts'] = lambda *_: [Document(blob=row, tags=tags)]
    return service


UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ('answer', 'kind'),
    [((UNAVAILABLE, {}), UnavailableError), ((EXHAUSTED, {'retry-after': '1'}), BusyError)],
)
def test_a_service_that_starts_or_is_busy_is_asked_again_over_grpc(encoding, monkeypatch, answer, kind):
    with EncodeClient(encoding.host) as client:
        encoding.turned_away += [answer] * 9
        assert client.encode(['abc']).tolist() == [[3, 97]]
        monkeypatch.setattr(encode_client, 'PATIENCE', 0)
        encoding.turned_away += [answer] * 9
        with pytest.raises(kind, match='the reason of the service') as caught:
            client.encode(['abc'])
        assert caught.value.code == answer[0].value[0]


def test_a_request_that_is_too_large_is_not_sent_again(encoding):
    encoding.turned_away += [(EXHAUSTED, {})] * 2
    with EncodeClient(encoding.host) as client, pytest.raises(FinetunerServerError, match='failed in /encode_texts'):
        client.encode(['abc'])
    assert len(encoding.turned_away) == 1


@pytest.mark.parametrize(
    ('answer', 'kind'),
    [
        ((503, {}), UnavailableError),
        ((502, {}), UnavailableError),
        ((None, {}), UnavailableError),
        ((429, {}), BusyError),
    ],
)
def test_a_service_that_starts_or_is_busy_is_asked_again_over_http(encoding, http, monkeypatch, answer, kind):
    with EncodeClient(http.host) as client:
        http.turned_away += [answer] * 9
        assert client.encode(['abc']).tolist() == [[3, 97]]
        monkeypatch.setattr(encode_client, 'PATIENCE', 0)
        http.turned_away += [answer] * 9
        with pytest.raises(kind, match=http.host):
            client.encode(['abc'])


@pytest.mark.parametrize('scheme', ['grpc', 'http'])
def test_a_service_that_is_not_there_yet_is_asked_again(encoding, http, monkeypatch, scheme):
    host = {'grpc': encoding, 'http': http}[scheme].host
    with socket.socket() as later:
        later.bind(('localhost', 0))
        awaited = f'{scheme}://localhost:{later.getsockname()[1]}'
        monkeypatch.setattr(encode_client, 'MAX_PAUSE', 0.1)
        with EncodeClient(awaited, token=settings.load_token()) as client:
            starting = threading.Timer(0.3, forward, (later, int(host.rpartition(':')[2])))
            starting.start()
            assert client.encode(['abc']).tolist() == [[3, 97]]
            starting.join()
    monkeypatch.setattr(encode_client, 'PATIENCE', 0)
    with EncodeClient('http://localhost:9') as client, pytest.raises(UnavailableError, match='no service answers at'):
        client.encode(['abc'])


def forward(listener, port):
    """Begin to take connections: the first one leads to a port."""
    listener.listen()
    taken, _ = listener.accept()
    server = socket.create_connection(('localhost', port))

    def pump(source, target):
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    for way in ((taken, server), (server, taken)):
        threading.Thread(target=pump, args=way, daemon=True).start()


def test_an_error_ends_all_that_is_under_way(connect):
    service = Service(FinetunerServerError('it broke'))
    with connect(service, batch_size=1, prefetch=2) as client:
        with pytest.raises(FinetunerServerError, match='it broke'):
            client.encode(['a'] * 100)
        time.sleep(0.1)
        assert len(service.sizes) <= 4
        assert client.encode(['b']).tolist() == [[1, 98]]


def test_a_task_that_is_cancelled_sends_nothing_more(connect):
    service = Service(delay=0.05)

    async def give_up(client):
        asking = asyncio.create_task(client.aencode(['a'] * 100))
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    with connect(service, batch_size=1, prefetch=2) as client:
        asyncio.run(give_up(client))
        assert len(service.sizes) <= 8


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'batch_size': 0}, 'batch_size is 0: it must be positive'),
        ({'prefetch': -1}, 'prefetch is -1: it must be positive'),
        ({'dtype': 'int8'}, "dtype is 'int8': choose float32 or float16"),
    ],
)
def test_options_are_checked(connect, options, match):
    with pytest.raises(ValueError, match=match):
        connect(Service(), **options)


def test_callers_do_not_wait_for_one_another(connect):
    service = Service(delay=0.5)

    async def together(client):
        return await asyncio.gather(*(client.aencode(['a'] * (number + 1)) for number in range(20)))

    with connect(service, batch_size=10, prefetch=1) as client:
        with ThreadPoolExecutor(20) as threads:
            assert len(list(threads.map(client.encode, [['a'] * 11] * 20))) == 20
        assert service.most > 10
        service.most = 0
        assert [len(found) for found in asyncio.run(together(client))] == [*range(1, 21)]
        assert service.most > 10


def test_a_client_that_is_closed_says_so(connect, monkeypatch):
    monkeypatch.setattr(encode_client, 'AT_ONCE', 1)
    service = Service(delay=0.5)

    async def close_meanwhile(client):
        asking = [asyncio.create_task(client.aencode(['a'])) for _ in range(3)]
        await asyncio.sleep(0.2)
        client.close()
        return await asyncio.gather(*asking, return_exceptions=True)

    client = connect(service)
    first, *waiting = asyncio.run(close_meanwhile(client))
    assert first.tolist() == [[1, 97]], 'what was on its way is answered'
    closed = 'this EncodeClient is closed: make another one'
    assert [str(error) for error in waiting] == [closed] * 2
    with pytest.raises(RuntimeError, match=closed):
        client.encode(['a'])
    with pytest.raises(RuntimeError, match=closed):
        asyncio.run(client.aencode(['a']))
