"""Limits of the gateway by themselves: buckets, and what environment variables may say."""

import asyncio
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from fastapi import FastAPI
from fastapi.exceptions import HTTPException
from uvicorn import Config, Server

from executors.limits import BodyLimits, Ending
from executors.rate import MAX_CALLERS, TOKENS_OF_ADDRESS, Buckets, max_body
from executors.tls import read_certificate
from tests.integration.conftest import free_ports


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_lets_a_burst_through_and_then_the_rate():
    clock = Clock()
    buckets = Buckets(2, clock)
    assert [buckets.take('a') for _ in range(4)] == [0] * 4, 'two seconds of requests at once'
    assert buckets.take('a') == pytest.approx(0.5)
    clock.now += 0.5
    assert buckets.take('a') == 0
    assert buckets.take('a') > 0
    assert buckets.take('b') == 0, 'others have buckets of their own'


def test_tokens_that_are_made_up_have_no_end_of_requests():
    buckets = Buckets(2, Clock())
    assert [buckets.take('a', 'one token') for _ in range(4)] == [0] * 4
    assert buckets.take('a', 'one token') > 0
    admitted = sum(buckets.take('a', f'token {number}') == 0 for number in range(100))
    assert 30 < admitted < 4 * TOKENS_OF_ADDRESS
    assert buckets.take('b', 'another token') == 0


def test_a_refused_request_costs_nothing():
    clock = Clock()
    buckets = Buckets(1, clock)
    for _ in range(50):
        buckets.take('a')
    clock.now += 1
    assert buckets.take('a') == 0


def test_no_rate_is_no_limit_and_callers_are_forgotten():
    assert not any(Buckets(0).take('a') for _ in range(10_000))
    buckets = Buckets(1)
    for number in range(MAX_CALLERS + 10):
        buckets.take(str(number))
    assert len(buckets._buckets) == MAX_CALLERS


@pytest.mark.parametrize('value', ['-1', 'much', 'nan', 'inf'])
def test_a_rate_that_is_none_is_refused(monkeypatch, value):
    monkeypatch.setenv('FINETUNER_RATE_LIMIT', value)
    with pytest.raises(ValueError, match='FINETUNER_RATE_LIMIT is .*give requests per second'):
        Buckets.from_environment()


@pytest.mark.parametrize('value', ['0', '-5', '1e6', '64M'])
def test_a_body_limit_that_is_none_is_refused(monkeypatch, value):
    monkeypatch.setenv('FINETUNER_MAX_BODY_BYTES', value)
    with pytest.raises(ValueError, match='FINETUNER_MAX_BODY_BYTES is .*give a number of bytes'):
        max_body()


def test_tls_needs_a_certificate_and_its_key(monkeypatch, tmp_path):
    assert read_certificate() is None
    for name in ('a', 'b'):
        command = ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
        names = ['-keyout', tmp_path / f'{name}.key', '-out', tmp_path / f'{name}.pem', '-subj', '/CN=localhost']
        subprocess.run([*command, *names], check=True, capture_output=True)
    monkeypatch.setenv('FINETUNER_TLS_CERT', str(tmp_path / 'a.pem'))
    with pytest.raises(ValueError, match='FINETUNER_TLS_CERT is set and FINETUNER_TLS_KEY is not'):
        read_certificate()
    for key, reason in (('none.key', 'cannot be read: No such file'), ('b.key', 'are no certificate and its key')):
        monkeypatch.setenv('FINETUNER_TLS_KEY', str(tmp_path / key))
        with pytest.raises(ValueError, match=reason):
            read_certificate()
    monkeypatch.setenv('FINETUNER_TLS_KEY', str(tmp_path / 'a.key'))
    assert read_certificate().path == tmp_path / 'a.pem'
    monkeypatch.delenv('FINETUNER_TLS_CERT')
    with pytest.raises(ValueError, match='FINETUNER_TLS_KEY is set and FINETUNER_TLS_CERT is not'):
        read_certificate()


GONE = object()


async def receive_all(limits: BodyLimits, pieces: list[bytes | None], length: int | None = None) -> tuple[int, str]:
    """What an application that reads its body answers; None is a piece that never comes."""

    async def app(scope, receive, send):
        while (await receive()).get('more_body'):
            pass
        await send({'type': 'http.response.start', 'status': 200})

    coming = iter(pieces)

    async def receive():
        if (piece := next(coming, GONE)) is GONE:
            return {'type': 'http.disconnect'}
        if piece is None:
            await asyncio.sleep(60)
        return {'type': 'http.request', 'body': piece, 'more_body': piece != b''}

    sent = []

    async def send(message):
        sent.append(message)

    limits.app = app
    headers = [] if length is None else [(b'content-length', str(length).encode())]
    try:
        await limits({'type': 'http', 'headers': headers}, receive, send)
    except HTTPException as error:
        return error.status_code, error.detail
    return sent[0]['status'], ''


def test_a_body_must_not_be_large_or_slow_or_one_too_many(monkeypatch):
    monkeypatch.setenv('FINETUNER_MAX_BODY_BYTES', '100')
    monkeypatch.setattr('executors.limits.BODY_PATIENCE', 0.05)
    limits = BodyLimits(None)
    assert asyncio.run(receive_all(limits, [60 * b'x', 40 * b'x', b''])) == (200, '')
    assert asyncio.run(receive_all(limits, [], length=101))[0] == 413, 'it is not read at all'
    assert asyncio.run(receive_all(limits, [60 * b'x', 60 * b'x', b'']))[0] == 413
    assert asyncio.run(receive_all(limits, [b'x', None]))[0] == 408
    limits.held = 8 * 100 - 50  # those of others
    assert asyncio.run(receive_all(limits, [60 * b'x', b''])) == (
        503,
        'too many large requests at once: try again in a second',
    )
    assert limits.held == 8 * 100 - 50, 'what is refused is let go'


def test_a_request_that_the_end_of_the_server_cuts_off_is_told_so():
    at_work = threading.Event()
    app = FastAPI()

    @app.get('/')
    async def work():
        at_work.set()
        await asyncio.sleep(60)

    app.add_middleware(Ending)
    (port,) = free_ports(1)
    server = Server(Config(app, port=port, timeout_graceful_shutdown=1, log_level='critical'))
    serving = threading.Thread(target=server.run)
    serving.start()
    with ThreadPoolExecutor() as threads:
        while not server.started:
            time.sleep(0.01)
        answer = threads.submit(requests.get, f'http://127.0.0.1:{port}/', timeout=30)
        assert at_work.wait(10)
        server.should_exit = True
        response = answer.result()
    serving.join()
    assert (response.status_code, response.headers['Retry-After']) == (503, '1')
    assert 'the service ended before it had the answer' in response.json()['detail']


def test_a_bucket_knows_callers_by_hashes_alone():
    buckets = Buckets(1)
    buckets.take('a', 'a secret token')
    assert 'secret' not in repr(buckets._buckets)
