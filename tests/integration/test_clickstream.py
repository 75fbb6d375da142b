"""The clickstream over REST, as a front end calls it: what Embedding Studio answered, save where we differ."""

import json
import threading
import time

import pytest
import requests

RESULTS = [
    {'object_id': 'a', 'rank': 0.5, 'meta': {'text': 'a red shoe', 'sizes': [38, 39]}},
    {'object_id': 'b'},
]


@pytest.fixture(scope='module')
def api(service):
    """Calls a route below `/api/v1/clickstream`, and answers with the status and the body."""
    session = requests.Session()
    session.headers['Authorization'] = f'Bearer {service.token}'

    def call(method, path, body=None, **query):
        url = f'http://127.0.0.1:{service.http_port}/api/v1/clickstream{path}'
        answer = session.request(method, url, json=body, params=query, timeout=60)
        return answer.status_code, answer.json()

    # what other tests have left
    call('DELETE', '/sessions', older_than_days=0)
    call('POST', '/internal/batch/release', {'release_id': f'before {time.time()}'})
    return call


def test_from_a_session_to_a_batch(api):
    moment = int(time.time()) - 5
    session = {'session_id': 's1', 'search_query': 'shoes', 'search_results': RESULTS, 'created_at': moment}
    assert api('POST', '/session', {**session, 'user_id': 'ann', 'payload_filter': {}}) == (200, None)
    assert api('POST', '/session', {**session, 'search_query': 'another'}) == (200, None), 'the first one stays'
    events = [
        {'event_id': '1', 'object_id': 'a', 'created_at': moment},
        {'event_id': '2', 'object_id': 'z', 'event_type': 'purchase', 'meta': {'importance': 2}, 'unknown': 1},
    ]
    assert api('POST', '/session/events', {'session_id': 's1', 'events': events[:1]}) == (200, None)
    assert api('POST', '/session/events', {'session_id': 's1', 'events': events}) == (200, None)
    assert api('POST', '/session/events', {'session_id': 's1', 'events': []}) == (200, None)
    assert api('POST', '/session/events', {'session_id': 'later', 'events': events}) == (200, None)
    assert api('POST', '/session/irrelevant', {'session_id': 's1'}) == (200, None)
    status, found = api('GET', '/session', session_id='s1')
    bought = found['events'].pop()
    assert (status, found) == (
        200,
        {
            'session_id': 's1',
            'search_query': 'shoes',
            'search_results': [RESULTS[0], {'object_id': 'b', 'rank': None, 'meta': None}],
            'search_meta': None,
            'user_id': 'ann',
            'created_at': moment,
            'is_irrelevant': True,
            'events': [{'event_id': '1', 'object_id': 'a', 'event_type': 'click', 'created_at': moment, 'meta': None}],
        },
    )
    assert (bought['event_type'], bought['object_id'], bought['meta']) == ('purchase', 'z', {'importance': 2})

    status, released = api('POST', '/internal/batch/release', {'release_id': 'first'})
    assert status == 200 and set(released) == {'release_id', 'batch_id', 'released_at'}
    assert released['release_id'] == 'first' and abs(released['released_at'] - time.time()) < 60
    api('POST', '/session', {**session, 'session_id': 's2', 'search_results': []})
    assert api('POST', '/internal/batch/release', {'release_id': 'first'}) == (200, released), 'while another collects'
    batch = released['batch_id']
    status, page = api('GET', '/internal/batch/sessions', batch_id=batch, limit=1, events_limit=1)
    assert (status, page['batch_id'], page['last_number']) == (200, batch, 1)
    assert page['sessions'] == [{**found, 'session_number': 1}]
    empty = {'batch_id': batch, 'last_number': None, 'sessions': []}
    assert api('GET', '/internal/batch/sessions', batch_id=batch, after_number=1) == (200, empty)
    assert api('GET', '/internal/batch/sessions', batch_id='x') == (200, {**empty, 'batch_id': 'x'})
    status, shown = api('GET', '/internal/batch', batch_id=batch)
    assert status == 200 and (shown['status'], shown['sessions'], shown['release_id']) == ('released', 1, 'first')
    _, batches = api('GET', '/internal/batches', size=2)
    assert [item['status'] for item in batches['items']] == ['collecting', 'released']
    assert batches['items'][1] == shown and batches['total'] >= 2


def test_whole_numbers_come_back_as_they_were_sent(api):
    name = f'numbers {time.time()}'
    told = {'year': 2021, 'ean': 5901234123457, 'price': 9.5, 'deep': [{'n': -(2**53) + 1}], 'is_new': True}
    session = {'session_id': name, 'search_query': 'q', 'search_results': [{'object_id': 'a', 'meta': told}]}
    assert api('POST', '/session', {**session, 'search_meta': told}) == (200, None)
    events = [{'event_id': '1', 'object_id': 'a', 'meta': told}]
    assert api('POST', '/session/events', {'session_id': name, 'events': events}) == (200, None)
    _, found = api('GET', '/session', session_id=name)
    for kept in (found['search_meta'], found['search_results'][0]['meta'], found['events'][0]['meta']):
        assert json.dumps(kept, sort_keys=True) == json.dumps(told, sort_keys=True), '7 is not 7.0'
    status, answer = api('POST', '/session', {**session, 'search_meta': {'id': [1, 2**53]}})
    assert status == 422 and 'search_meta' in answer['detail']
    assert 'id[1] is a whole number of more than 53 bits: send it as a text' in answer['detail']


def test_the_first_hundred_events_are_shown_and_all_are_kept(api):
    name = f'eager {time.time()}'
    api('POST', '/session', {'session_id': name, 'search_query': 'q', 'search_results': RESULTS})
    events = [{'event_id': f'{number:03}', 'object_id': 'a'} for number in range(101)]
    assert api('POST', '/session/events', {'session_id': name, 'events': events}) == (200, None)
    shown = api('GET', '/session', session_id=name)[1]['events']
    assert [event['event_id'] for event in shown] == [event['event_id'] for event in events[:100]]
    batch = api('POST', '/internal/batch/release', {'release_id': name})[1]['batch_id']

    def kept(**limit):
        _, page = api('GET', '/internal/batch/sessions', batch_id=batch, limit=1000, **limit)
        return next(len(session['events']) for session in page['sessions'] if session['session_id'] == name)

    assert (kept(), kept(events_limit=1000)) == (100, 101)


def test_what_is_wrong_is_refused_in_a_sentence(api):
    session = {'session_id': 's', 'search_query': 'q', 'search_results': []}
    now = int(time.time())
    for moment in (now - 12 * 3600 - 60, now + 360):
        answer = api('POST', '/session', {**session, 'created_at': moment})
        assert answer == (400, {'detail': f'Invalid utc timestamp: {moment}'})
    missing = 404, {'detail': 'Session with id=nobody not found'}
    assert api('POST', '/session/irrelevant', {'session_id': 'nobody'}) == missing
    assert api('GET', '/session', session_id='nobody') == missing
    assert api('GET', '/internal/batch', batch_id='x')[0] == 404
    for body, word in (
        ({'search_query': 'q', 'search_results': []}, "'session_id' is missing"),
        ({**session, 'search_results': [{'rank': 1}]}, "'search_results.0.object_id' is missing"),
        ({**session, 'session_id': ''}, 'session_id'),
        ({**session, 'created_at': 1.5}, 'created_at'),
    ):
        status, answer = api('POST', '/session', body)
        assert status == 422 and word in answer['detail']
    status, answer = api('DELETE', '/sessions')
    assert (status, answer['detail']) == (422, "give 'user_id' or 'older_than_days': one of the two")


def test_a_release_at_once_closes_one_batch(api):
    session = {'session_id': f'race {time.time()}', 'search_query': 'q', 'search_results': RESULTS}
    api('POST', '/session', session)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(api('POST', '/internal/batch/release', {'release_id': 'race'})))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in found} == {200} and len({body['batch_id'] for _, body in found}) == 1
    nothing = 404, {'detail': 'There is no collecting batch'}
    assert api('POST', '/internal/batch/release', {'release_id': 'nothing'}) == nothing


def test_the_sessions_of_a_user_are_deleted(api):
    for number, user in enumerate(('bob', 'bob', 'cid')):
        session = {'session_id': f'of {user} {number}', 'search_query': 'q', 'search_results': [], 'user_id': user}
        assert api('POST', '/session', session)[0] == 200
    assert api('DELETE', '/sessions', user_id='bob') == (200, {'deleted': 2})
    assert api('GET', '/session', session_id='of bob 0')[0] == 404
    assert api('GET', '/session', session_id='of cid 2')[0] == 200
    assert api('DELETE', '/sessions', older_than_days=1) == (200, {'deleted': 0})


def test_a_token_is_needed(service):
    url = f'http://127.0.0.1:{service.http_port}/api/v1/clickstream/session'
    assert requests.post(url, json={}, timeout=60).status_code == 401
    assert requests.get(url, params={'session_id': 's'}, timeout=60).status_code == 401
