"""The client over HTTP: where gRPC cannot pass, or where it is told to."""

from __future__ import annotations

import datetime
import errno
import os
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import format_datetime

import pytest

import finetuner
from finetuner import settings
from finetuner.client import http_channel, reaching, session
from finetuner.client.http_channel import HttpChannel
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import AuthenticationError, FinetunerServerError, RegistryError


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """The pauses before another try, which are not taken."""
    pauses: list[float] = []
    monkeypatch.setattr(http_channel, 'sleep', pauses.append)
    return pauses


def free_port():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def test_all_goes_over_http(http, service, run_record):
    service.endpoints['/status'] = run_record('FINISHED')
    service.endpoints['/metrics'] = lambda *_: {'before': {}, 'after': {'hit_at_k': 0.5}}
    finetuner.login()
    run = finetuner.get_run('brisk-heron')
    assert run.metrics()['after'] == {'hit_at_k': 0.5}
    assert [path for path, _ in http.requests] == ['/whoami', '/status', '/metrics']
    assert {kind for _, kind in http.requests} == {'application/x-protobuf'}
    assert len(http.connections) == 1, 'a connection is kept'


def test_documents_go_over_http(http, service, run_record):
    sent = []
    service.endpoints['/ingest'] = lambda parameters, documents: sent.extend(documents) or {'rows': len(documents)}
    service.endpoints['/fit'] = run_record('CREATED')
    finetuner.fit('m', [Document(text='a', tags={'finetuner_label': 'x'})], run_name='r')
    assert [document.text for document in sent] == ['a']


def test_errors_of_the_service_are_raised_as_themselves(http, service, monkeypatch):
    def refuse(*_):
        raise RegistryError('there is no run x')

    service.endpoints['/status'] = refuse
    with pytest.raises(RegistryError, match='^there is no run x$'):
        finetuner.get_run('x')
    monkeypatch.setenv('FINETUNER_TOKEN', 'wrong')
    with pytest.raises(AuthenticationError, match='the token is unknown'):
        finetuner.whoami()


def test_the_log_is_asked_for_again_and_again(http, service, run_record, monkeypatch):
    log = 'abcdef'

    def logs(parameters, documents):
        offset = int(parameters['offset'])
        end = min(offset + 2, len(log))
        return [Document(text=log[offset:end], tags={'offset': end, 'status': 'FINISHED' if end == 6 else 'STARTED'})]

    service.endpoints.update({'/status': run_record('CREATED', 'STARTED'), '/logs': logs})
    assert list(finetuner.get_run('brisk-heron').stream_logs(interval=0.01)) == ['ab', 'cd', 'ef']


def test_a_service_may_lie_below_a_path(http, monkeypatch):
    monkeypatch.setenv('FINETUNER_HOST', f'{http.host}/base/')
    assert finetuner.whoami() == 'local'
    assert http.requests[0][0] == '/base/whoami'


@pytest.mark.parametrize('status', [429, 503])
@pytest.mark.parametrize('wait', ['2', 'a time', None])
def test_a_busy_service_is_asked_again(http, no_pause, status, wait):
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3.5)
    headers = {'Retry-After': format_datetime(later) if wait == 'a time' else wait} if wait else {}
    http.turned_away += [(status, headers)] * 2
    assert finetuner.whoami() == 'local'
    if wait == '2':
        assert no_pause == [2, 2]
    elif wait:
        assert all(1 < pause < 4 for pause in no_pause)
    else:
        assert 0 < no_pause[0] <= 0.5 and 0.4 < no_pause[1] <= 1


@pytest.mark.parametrize(
    ('status', 'headers', 'sentence'),
    [
        (401, {}, 'lets us not in (401): the reason of the service; give another token with finetuner.login'),
        (404, {}, 'knows no /whoami (404): the reason of the service; check the address'),
        (413, {}, 'are too many for {host} (413): the reason of the service; its operator sets the limit'),
        (429, {'Retry-After': '900'}, 'had too many requests (429): the reason of the service; try again in 900 sec'),
        (503, {}, 'does not answer (503): the reason of the service; it may be starting'),
        (307, {'Location': 'https://elsewhere'}, 'is elsewhere now (307): the reason of the service; it names https'),
        (500, {}, 'failed in /whoami with the HTTP status 500 (500): the reason of the service; its log says more'),
    ],
)
def test_other_statuses_become_sentences(http, status, headers, sentence):
    http.turned_away += [(status, headers)] * 9
    with pytest.raises(FinetunerServerError) as caught:
        finetuner.whoami()
    assert sentence.format(host=http.host) in str(caught.value) and http.host in str(caught.value)
    assert caught.value.code == status
    assert len(http.requests) == (4 if status == 503 else 1)


def test_a_connection_that_broke_is_made_again(http, no_pause):
    finetuner.whoami()
    http.turned_away.append((None, {}))
    assert finetuner.whoami() == 'local' and no_pause == [0.0]
    http.turned_away += [(None, {})] * 9
    with pytest.raises(FinetunerServerError, match='broke off /whoami'):
        finetuner.whoami()


def test_what_was_broken_off_by_hand_does_not_answer_the_next_request(http, monkeypatch):
    finetuner.login()

    def press_ctrl_c(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as while_it_waits:
        while_it_waits.setattr(http_channel.http.client.HTTPConnection, 'getresponse', press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            finetuner.login(force=True)
    finetuner.login(force=True)
    assert len(http.connections) == 2


def test_a_network_that_goes_away_is_an_error_that_says_so(http, monkeypatch):
    def request(*_):
        raise OSError(errno.EHOSTUNREACH, 'No route to host')

    finetuner.whoami()
    monkeypatch.setattr('http.client.HTTPConnection.request', request)
    with pytest.raises(FinetunerServerError, match='broke off /whoami.*No route to host'):
        finetuner.whoami()


def test_what_may_have_been_done_is_not_asked_for_twice(http, service):
    service.endpoints['/rollback'] = lambda *_: {'artifact_id': 'a', 'number': 1, 'created_at': 'now'}
    finetuner.whoami()
    http.turned_away.append((None, {}))
    with pytest.raises(FinetunerServerError, match='broke off /rollback.*it may have been done: look before'):
        finetuner.rollback('support@production')
    assert [path for path, _ in http.requests] == ['/whoami', '/rollback'] and len(http.connections) == 2
    assert finetuner.rollback('support@production').number == 1


@pytest.mark.parametrize(
    ('status', 'headers', 'told'),
    [
        (503, {'Retry-After': '1'}, 'does not answer (503): the reason of the service; it may have been done: look'),
        (502, {}, 'does not answer (502): the reason of the service; it may have been done: look'),
        (504, {}, 'does not answer (504): the reason of the service; it may have been done: look'),
        (500, {}, 'with the HTTP status 500 (500): the reason of the service; it may have been done: look'),
        (429, {'Retry-After': '900'}, 'too many requests (429): the reason of the service; try again in 900 seconds'),
    ],
)
def test_an_answer_that_leaves_open_what_was_done_is_not_asked_for_twice(http, status, headers, told):
    http.turned_away += [(status, headers)] * 2
    with pytest.raises(FinetunerServerError) as caught:
        finetuner.rollback('support@production')
    assert told in str(caught.value) and len(http.requests) == 1


@pytest.mark.parametrize('answer', [(429, {}), (503, {'Finetuner-Not-Done': 'true'})])
def test_what_was_refused_before_anything_was_done_is_asked_for_again(http, service, answer):
    service.endpoints['/rollback'] = lambda *_: {'artifact_id': 'a', 'number': 1, 'created_at': 'now'}
    http.turned_away += [answer] * 2
    assert finetuner.rollback('support@production').number == 1
    http.turned_away += [answer] * 9
    with pytest.raises(FinetunerServerError, match='try again later') as caught:
        finetuner.rollback('support@production')
    assert 'may have been done' not in str(caught.value)


def test_threads_have_connections_of_their_own(http, service):
    together = threading.Barrier(4, timeout=10)
    service.endpoints['/whoami'] = lambda *_: {'account': str(together.wait())}
    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(lambda _: finetuner.whoami(), range(4)))
    assert sorted(told) == ['0', '1', '2', '3'] and len(http.connections) == 4


def test_a_late_answer_is_an_error_that_says_so(http, service):
    service.endpoints['/slow'] = lambda *_: threading.Event().wait(0.5) or {}
    with pytest.raises(FinetunerServerError, match='did not answer /slow within 0.1 seconds'):
        HttpChannel(http.host).call('/slow', {'token': settings.load_token()}, timeout=0.1)
    assert finetuner.whoami() == 'local', 'the late answer is not taken for another'
    service.endpoints['/rollback'] = lambda *_: threading.Event().wait(0.5) or {}
    with pytest.raises(FinetunerServerError, match='did not answer /rollback .*it may have been done: look'):
        HttpChannel(http.host).call('/rollback', {'token': settings.load_token()}, timeout=0.1)


def test_nobody_there():
    host = f'http://localhost:{free_port()}'
    with pytest.raises(FinetunerServerError, match=f'no service answers at {host}: start one with `finetuner serve`'):
        HttpChannel(host).call('/whoami', {})
    with pytest.raises(FinetunerServerError, match='no service answers at http://no-such-host.invalid: start'):
        HttpChannel('http://no-such-host.invalid').call('/whoami', {})


def test_other_servers_are_told_apart(http, service, monkeypatch):
    with pytest.raises(FinetunerServerError, match='answers, but speaks no HTTP.*grpc://'):
        HttpChannel(service.host.replace('grpc', 'http')).call('/whoami', {})
    with pytest.raises(FinetunerServerError, match='is no Jina Flow with gRPC|no service answers'):
        session.Session(http.host.replace('http', 'grpc'), 'x').request('/whoami')
    with pytest.raises(FinetunerServerError, match='speaks no TLS'):
        HttpChannel(http.host.replace('http', 'https')).call('/whoami', {})
    http.turned_away.append((200, {}))
    with pytest.raises(FinetunerServerError, match='answers, but is no service of Finetuner'):
        finetuner.whoami()


@pytest.mark.parametrize(
    ('host', 'found'),
    [
        ('team', ['grpc://team:51000', 'http://team:51001']),
        ('team:80', ['grpc://team:80', 'http://team:80']),
        ('grpcs://team', ['grpcs://team:51000']),
        ('HTTPS://Team/finetuner/', ['https://team:443/finetuner']),
        ('grpc://team, http://team', ['grpc://team:51000', 'http://team:51001']),
        ('http://[::1]:9', ['http://[::1]:9']),
    ],
)
def test_addresses_of_a_host(host, found):
    assert settings.addresses(host) == found


@pytest.mark.parametrize(
    'host', ['', ',', 'ftp://team', 'http://', 'grpc://team/path', 'http://team:port', 'http://me@team', 'http://a/?b']
)
def test_what_is_no_address(host):
    with pytest.raises(ValueError, match='is not an address: write grpc://name:port or http://name:port'):
        settings.addresses(host)


def test_a_host_without_scheme_is_reached_either_way(http, service, monkeypatch):
    for server in (http, service):
        monkeypatch.setenv('FINETUNER_HOST', server.host.partition('://')[2])
        assert finetuner.whoami() == 'local'
    assert len(http.requests) == 1


def test_the_way_that_is_open_is_kept(http, service, monkeypatch):
    blocked = f'grpc://localhost:{free_port()}'
    host = f'{blocked},{http.host}'
    finetuner.login(host=host, token=settings.load_token())
    monkeypatch.delenv('FINETUNER_HOST')
    monkeypatch.delenv('FINETUNER_TOKEN')
    monkeypatch.setattr(session, '_current', None)
    tried = []
    real = reaching.open_transport
    monkeypatch.setattr(reaching, 'open_transport', lambda host: tried.append(host) or real(host))
    assert finetuner.whoami() == finetuner.whoami() == 'local'
    assert blocked not in tried and tried.count(http.host) == 2
    http.shutdown()
    http.server_close()
    HttpChannel.close(real(http.host))
    with pytest.raises(FinetunerServerError, match=f'no service answers at {blocked} or {http.host}: start one'):
        finetuner.whoami()


@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    """A certificate for localhost that signs itself: (PEM, key)."""
    x509 = pytest.importorskip('cryptography.x509')
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'localhost')])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName('localhost')]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp('tls')
    pem = serialization.Encoding.PEM
    (folder / 'cert.pem').write_bytes(made.public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / 'key.pem').write_bytes(key.private_bytes(pem, *plain))
    return folder / 'cert.pem', folder / 'key.pem'


def speak_tls(http, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    return http.host.replace('http', 'https')


def test_tls_over_http(http, certificate, monkeypatch):
    host = speak_tls(http, certificate)
    token = settings.load_token()
    with pytest.raises(FinetunerServerError, match='is not trusted.*FINETUNER_CA_CERT'):
        HttpChannel(host).call('/whoami', {'token': token})
    assert not http.requests, 'nothing was sent'
    monkeypatch.setenv('FINETUNER_CA_CERT', str(certificate[0]))
    HttpChannel(host).call('/whoami', {'token': token})
    with pytest.raises(FinetunerServerError, match='is not trusted'):  # it is for localhost
        HttpChannel(host.replace('localhost', '127.0.0.1')).call('/whoami', {'token': token})
    monkeypatch.setenv('FINETUNER_CA_CERT', '/nowhere.pem')
    with pytest.raises(ValueError, match='FINETUNER_CA_CERT names no file: /nowhere.pem'):
        HttpChannel(host)


def test_a_connection_with_tls_that_was_idle_for_too_long_is_made_again(http, service, certificate, monkeypatch):
    service.endpoints['/ingest'] = lambda parameters, documents: {'rows': len(documents)}
    documents = DocumentArray([Document(text='x' * (8 << 20))]).to_protobuf().SerializeToString()
    monkeypatch.setenv('FINETUNER_CA_CERT', str(certificate[0]))
    monkeypatch.setenv('FINETUNER_HOST', speak_tls(http, certificate))
    finetuner.whoami()
    http.end_connections()
    time.sleep(0.1)
    assert session.current_session().request('/ingest', documents).tags == {'rows': 1}


def test_tls_over_grpc(certificate, monkeypatch):
    import grpc

    from finetuner.client.channel import Channel

    server = grpc.server(ThreadPoolExecutor(1))
    pem, key = (path.read_bytes() for path in certificate)
    port = server.add_secure_port('localhost:0', grpc.ssl_server_credentials([(key, pem)]))
    server.start()
    try:
        doubtful = Channel(f'grpcs://localhost:{port}')
        with pytest.raises(FinetunerServerError, match='is not trusted.*FINETUNER_CA_CERT'):
            doubtful.call('/whoami', {})
        doubtful.close()
        monkeypatch.setenv('FINETUNER_CA_CERT', str(certificate[0]))
        trusted = Channel(f'grpcs://localhost:{port}')
        with pytest.raises(FinetunerServerError, match='answers, but is no Jina Flow'):  # it has no methods
            trusted.call('/whoami', {})
        trusted.close()
    finally:
        server.stop(None)


def test_a_blocked_port_is_given_up_soon(http, monkeypatch):
    """One that takes connections and says nothing, as a firewall may."""
    with socket.socket() as silent:
        silent.bind(('127.0.0.1', 0))
        silent.listen()
        monkeypatch.setenv('FINETUNER_HOST', f'grpc://127.0.0.1:{silent.getsockname()[1]},{http.host}')
        start = time.monotonic()
        assert finetuner.whoami() == 'local'
        assert time.monotonic() - start < 10
        seconds = []
        for _ in range(3):  # a machine that halts does not halt each time
            start = time.monotonic()
            assert finetuner.whoami() == 'local'
            seconds.append(time.monotonic() - start)
        assert min(seconds) < 1
        reaching.open_transport(os.environ['FINETUNER_HOST']).close()
