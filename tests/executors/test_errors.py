"""How the gateway tells that an executor is away."""

import grpc
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from jina.excepts import InternalNetworkError
from jina.types.request.data import SingleDocumentRequest

from executors import errors
from executors.gateway import _set_error
from executors.limits import BodyLimits
from finetuner.excepts import BusyError, UnavailableError


def broken(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details='Socket closed')


@pytest.mark.parametrize(
    ('code', 'status'),
    [(grpc.StatusCode.UNAVAILABLE, 503), (grpc.StatusCode.CANCELLED, 503), (grpc.StatusCode.UNKNOWN, 500)],
)
def test_a_stream_that_an_executor_broke_off_can_be_asked_for_again(code, status):
    request = SingleDocumentRequest()
    _set_error(request, broken(code), 'trainer')
    with pytest.raises(errors.HTTPException) as caught:
        errors.raise_for_status(request.header.status)
    assert caught.value.status_code == status
    assert 'the executor trainer broke off the stream: Socket closed' in caught.value.detail


@pytest.mark.parametrize('code', [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_an_executor_that_ends_is_away_for_a_while(code):
    error = errors.unreachable(InternalNetworkError(broken(code)))
    assert (error.status_code, error.headers) == (503, {'Retry-After': '1'})


def test_who_looks_for_the_metrics_of_a_service_is_told_where_they_are():
    app = FastAPI()
    errors.install(app, lambda path: UnavailableError(f'{path} is not known yet'))
    client = TestClient(app)
    away = client.get('/metrics')
    assert away.status_code == 404
    assert 'FINETUNER_METRICS_PORT' in away.json()['detail'] and 'docs/serving.md, Metrics' in away.json()['detail']
    assert client.post('/metrics').status_code == 503

    @app.post('/metrics')
    def of_a_run() -> dict[str, float]:
        return {}

    other = client.get('/metrics')
    assert (other.status_code, other.headers['Allow']) == (405, 'POST')
    assert 'GET /metrics is not possible: use POST' in other.json()['detail']
    assert 'FINETUNER_METRICS_PORT' in other.json()['detail']


def test_who_finds_no_room_is_told_when_to_come_again():
    request = SingleDocumentRequest()
    request.add_exception(BusyError('9 documents are under way'))
    with pytest.raises(errors.HTTPException) as caught:
        errors.raise_for_status(request.header.status)
    assert (caught.value.status_code, caught.value.headers) == (429, {'Retry-After': '1'})


def test_what_the_gateway_refuses_by_itself_is_told_to_be_undone(monkeypatch):
    monkeypatch.setenv('FINETUNER_MAX_BODY_BYTES', '10')
    app = FastAPI()

    @app.post('/promote')
    async def promote(request: Request) -> int:
        return len(await request.body())

    errors.install(app, lambda path: UnavailableError(f'{path} is not known yet'))
    limits = BodyLimits(app)
    client = TestClient(limits)
    unknown = client.post('/rollback')
    assert (unknown.status_code, unknown.headers['Finetuner-Not-Done']) == (503, 'true')
    limits.held = limits.room
    full = client.post('/promote', content=b'x')
    assert (full.status_code, full.headers['Finetuner-Not-Done']) == (503, 'true')
    away = errors.unreachable(InternalNetworkError(broken(grpc.StatusCode.UNAVAILABLE)))
    assert 'Finetuner-Not-Done' not in away.headers
