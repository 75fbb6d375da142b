"""The clickstream, without a Flow and behind one."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime, timedelta

import pytest
import requests
from jina import Client, Flow

from executors import clicks
from executors.clicks import ClickstreamExecutor
from executors.parameters import DeleteSessionsParameters, EventsParameters, SessionParameters
from finetuner.documents import DocumentArray
from finetuner.excepts import AuthenticationError, NotFoundError, ParameterError, RegistryError
from tests.flows import run_flow

SHOWN = [
    {'object_id': 'a', 'rank': 0.5, 'meta': {'text': 'a red shoe', 'size': 38, 'tags': ['x', None]}},
    {'object_id': 'b'},
]


@pytest.fixture
def executor():
    executor = ClickstreamExecutor()
    yield executor
    executor.close()


@pytest.fixture
def call(executor):
    """Calls an endpoint by its method's name, and answers its tags."""
    token = executor.registry.create_token(executor.registry.get_account().id, 'test')

    def post(name, **parameters):
        method = getattr(executor, name)
        model = (
            method.fn.__annotations__['parameters'] if hasattr(method, 'fn') else method.__annotations__['parameters']
        )
        return method(DocumentArray(), parameters=model(**{'token': token, **parameters}))[0].tags

    return post


def test_from_a_session_to_a_batch(call):
    moment = int(time.time()) - 5
    first = {
        'session_id': 's',
        'search_query': 'red shoes',
        'search_results': SHOWN,
        'user_id': 'u',
        'created_at': moment,
    }
    assert call('register_session', **first) == {'session_id': 's', 'is_new': True}
    assert call('register_session', **first)['is_new'] is False
    events = [{'event_id': '1', 'object_id': 'a', 'created_at': moment}]
    assert call('register_events', session_id='s', events=events) == {'session_id': 's', 'added': 1}
    assert call('register_events', session_id='s', events=[])['added'] == 0
    kept = call('click_session', session_id='s')
    assert kept == {
        'session_id': 's',
        'search_query': 'red shoes',
        'search_results': [SHOWN[0], {'object_id': 'b', 'rank': None, 'meta': None}],
        'search_meta': None,
        'user_id': 'u',
        'created_at': moment,
        'is_irrelevant': False,
        'events': [{'event_id': '1', 'object_id': 'a', 'event_type': 'click', 'created_at': moment, 'meta': None}],
    }
    assert call('mark_irrelevant', session_id='s')['is_irrelevant'] is True
    batch = call('release_batch', release_id='r')
    assert batch == call('release_batch', release_id='r') == call('batch', batch_id=batch['batch_id'])
    assert (batch['status'], batch['sessions'], batch['release_id']) == ('released', 1, 'r')
    assert call('batches')['items'] == [batch]
    page = call('batch_sessions', batch_id=batch['batch_id'])
    assert page == {
        'batch_id': batch['batch_id'],
        'last_number': 1,
        'sessions': [{**kept, 'is_irrelevant': True, 'session_number': 1}],
    }
    assert call('batch_sessions', batch_id=batch['batch_id'], after_number=1)['last_number'] is None
    assert call('delete_sessions', user_id='u') == {'deleted': 1}
    with pytest.raises(NotFoundError, match='Session with id=s not found'):
        call('click_session', session_id='s')
    with pytest.raises(NotFoundError, match='There is no collecting batch'):
        call('release_batch', release_id='other')


@pytest.mark.parametrize(
    'name', ['register_session', 'register_events', 'mark_irrelevant', 'click_session', 'release_batch', 'batch',
             'batches', 'batch_sessions', 'delete_sessions'],
)  # fmt: skip
def test_every_endpoint_needs_a_token(call, name):
    values = {
        'session_id': 's', 'search_query': 'q', 'search_results': [], 'events': [], 'release_id': 'r', 'batch_id': 'b',
        'user_id': 'u',
    }  # fmt: skip
    wanted = {
        'register_session': ('session_id', 'search_query', 'search_results'),
        'register_events': ('session_id', 'events'),
        'release_batch': ('release_id',),
        'batch': ('batch_id',),
        'batches': (),
        'batch_sessions': ('batch_id',),
        'delete_sessions': ('user_id',),
    }.get(name, ('session_id',))
    for token in (None, 'a token of nobody'):
        with pytest.raises(AuthenticationError):
            call(name, token=token, **{key: values[key] for key in wanted})


@pytest.mark.parametrize(
    ('model', 'values', 'sentence'),
    [
        (SessionParameters, {'session_id': 's', 'search_query': 'q'}, "'search_results' is missing"),
        (
            SessionParameters,
            {'session_id': 3, 'search_query': 'q', 'search_results': []},
            "'session_id': input should be",
        ),
        (
            SessionParameters,
            {'session_id': 's', 'search_query': 'q', 'search_results': [{'object_id': 'a', 'item_info': {}}]},
            "'search_results.0.item_info' is unknown",
        ),
        (
            SessionParameters,
            {'session_id': 's', 'search_query': 'q', 'search_results': [], 'created_at': 1.5},
            "'created_at': input should be a valid integer",
        ),
        (EventsParameters, {'session_id': 's', 'events': [{'object_id': 'a'}]}, "'events.0.event_id' is missing"),
    ],
)
def test_malformed_parameters_are_refused_by_name(model, values, sentence):
    with pytest.raises(ParameterError, match=sentence):
        model(**values)


def test_whole_numbers_arrive_as_floats():
    values = {'session_id': 's', 'search_query': 'q', 'search_results': [], 'created_at': 1.8e9}
    assert SessionParameters(**values).created_at == 1_800_000_000


def test_a_far_time_is_refused(call):
    with pytest.raises(RegistryError, match='^Invalid utc timestamp: 5$'):
        call('register_session', session_id='s', search_query='q', search_results=[], created_at=5)


def test_sessions_are_deleted_by_user_or_by_age(call):
    for values in ({}, {'user_id': 'u', 'older_than_days': 1}):
        with pytest.raises(ParameterError, match="give 'user_id' or 'older_than_days': one of the two"):
            call('delete_sessions', **values)
    moment = int(time.time())
    for name, age in (('old', 7200), ('new', 0)):
        call('register_session', session_id=name, search_query='q', search_results=SHOWN, created_at=moment - age)
    assert call('delete_sessions', older_than_days=1 / 24) == {'deleted': 1}
    assert call('click_session', session_id='new')['session_id'] == 'new'
    with pytest.raises(ParameterError, match="'older_than_days'"):
        DeleteSessionsParameters(older_than_days=-1)


def test_sessions_that_are_too_old_go_by_themselves(monkeypatch):
    monkeypatch.setattr(clicks, 'INTERVAL', 0.05)
    monkeypatch.setenv('FINETUNER_CLICK_DAYS', '0.04')
    executor = ClickstreamExecutor()
    try:
        account, kept = executor.registry.get_account().id, executor.registry.clicks
        for name, age in (('old', timedelta(hours=1)), ('new', timedelta(minutes=50))):
            kept.register_session(account, name, 'q', [], created_at=(datetime.now(UTC) - age).timestamp())
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                kept.get_session(account, 'old')
            except NotFoundError:
                break
            time.sleep(0.02)
        else:
            pytest.fail('the old session is still there')
        assert kept.get_session(account, 'new')
    finally:
        executor.close()
    monkeypatch.setenv('FINETUNER_CLICK_DAYS', '0')
    with pytest.raises(ValueError, match='retention_days is 0: give a number above 0'):
        ClickstreamExecutor()


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(('127.0.0.1', 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def build(ports: list[int]) -> Flow:
    flow = Flow(port=ports, protocol=['grpc', 'http']).config_gateway(uses='executors.gateway.FinetunerGateway')
    return flow.add(name='clicks', uses=ClickstreamExecutor, allow_concurrent=True)


def test_behind_the_gateway(executor):
    """Over the wire numbers are floats, lists of models are lists of mappings, and nothing becomes None or is lost."""
    token = executor.registry.create_token(executor.registry.get_account().id, 'test')
    grpc, http = free_ports(2)
    with run_flow(build, [grpc, http]):
        client = Client(port=grpc)

        def by_grpc(endpoint, **parameters):
            found = client.post(endpoint, parameters={'token': token, **parameters}, return_type=DocumentArray)
            return found[0].tags

        def by_http(endpoint, status=200, **parameters):
            headers = {'Authorization': f'Bearer {token}'}
            body = {'parameters': parameters}
            found = requests.post(f'http://127.0.0.1:{http}{endpoint}', json=body, headers=headers, timeout=20)
            assert found.status_code == status, found.text
            return found.json()['data'][0]['tags'] if status == 200 else found.json()['detail']

        for number, post in enumerate((by_grpc, by_http)):
            name, moment = f's{number}', int(time.time())
            post('/register_session', session_id=name, search_query='q', search_results=SHOWN, created_at=moment)
            events = [{'event_id': str(number), 'object_id': 'a', 'meta': {'importance': 2}} for number in range(3)]
            assert post('/register_events', session_id=name, events=events)['added'] == 3
        assert "'search_results' is missing" in by_http('/register_session', 422, session_id='s', search_query='q')
        assert by_http('/register_session', 400, session_id='s', search_query='q', search_results=[], created_at=5) == (
            'Invalid utc timestamp: 5'
        )
        batch = by_http('/release_batch', release_id='r')['batch_id']
        page = by_grpc('/batch_sessions', batch_id=batch, events_limit=2)
        assert page == by_http('/batch_sessions', batch_id=batch, events_limit=2)
    assert page['last_number'] == 2
    for session in page['sessions']:
        assert session['search_results'] == [SHOWN[0], {'object_id': 'b', 'rank': None, 'meta': None}]
        assert [event['meta'] for event in session['events']] == [{'importance': 2}] * 2
