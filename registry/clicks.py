"""Clicks: the part of the registry that knows what users searched for, what they were shown, and what they chose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from finetuner.excepts import RegistryError
from registry import click_batches, click_sessions
from registry.click_records import ClickBatch, ClickSession, SessionsOfBatch
from registry.database import Database
from registry.models import now
from registry.plain import check_size, clean, plain
from registry.records import Page

MAX_PAGE_SIZE = 1000
MAX_KEY = 255
"""Characters of an id of a client."""
MAX_QUERY = 10_000
"""Characters of a search query."""
MAX_RESULTS = 1000
"""Results of a session, and events of one request."""
MAX_EVENTS = 1000
"""Events that are read of one session."""
OLDEST, NEWEST = timedelta(hours=12), timedelta(minutes=5)
"""How far the time of a session may lie behind that of this machine, and before it."""


class Clicks:
    """`Registry.clicks`. Every method may be called from any thread; what an account owns, no other sees."""

    def __init__(self, database: Database):
        self._database = database

    def register_session(
        self,
        account_id: str,
        session_id: str,
        search_query: str,
        search_results: Sequence[Mapping[str, Any]],
        *,
        search_meta: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        created_at: float | None = None,
    ) -> bool:
        """Add a session to the batch that collects. False, and nothing changes, if there is one of this id.

        :param session_id: of the client, unique within the account.
        :param search_results: as they were shown: `object_id`, and perhaps `rank` and `meta`.
        :param user_id: of the client's user; `delete_user_sessions` goes by it.
        :param created_at: seconds since 1970 in UTC, default now; from 12 hours ago to 5 minutes from now.
        :raises RegistryError: a value is malformed, the time is none of these, or `search_meta` and the `meta` of all
            results are more than 64 KiB together.
        """
        session_id = check_key('session_id', session_id)
        if len(search_query) > MAX_QUERY:
            raise RegistryError(f'search_query has {len(search_query)} characters: at most {MAX_QUERY} are taken')
        time = now()
        results = [_result(result, number) for number, result in enumerate(_few(search_results))]
        meta = None if search_meta is None else plain(search_meta, 'search_meta')
        check_size(
            [meta, *(result['meta'] for result in results if 'meta' in result)],
            'search_meta, with the meta of results,',
        )
        values = {
            'search_query': clean(search_query),
            'search_results': results,
            'search_meta': meta,
            'user_id': None if user_id is None else check_key('user_id', user_id),
            'created_at': check_time(created_at, time - OLDEST, time + NEWEST) or time,
        }
        with self._database.write() as session:
            return click_sessions.insert_session(session, account_id, session_id, values)

    def register_events(self, account_id: str, session_id: str, events: Sequence[Mapping[str, Any]]) -> int:
        """Add what a user did, and return how much of it is new. Of events of one id, the first stays.

        :param session_id: whose session may come later.
        :param events: `event_id` and `object_id`, and perhaps `event_type` ('click'), `created_at` and `meta`.
        :raises RegistryError: a value is malformed, or the `meta` of an event is more than 64 KiB.
        """
        session_id = check_key('session_id', session_id)
        time = now()
        rows = [_event(event, number, time) for number, event in enumerate(_few(events))]
        with self._database.write() as session:
            return click_sessions.insert_events(session, account_id, session_id, rows)

    def mark_irrelevant(self, account_id: str, session_id: str) -> None:
        """Note that nothing which the session showed was of use.

        :raises NotFoundError: the account has no such session.
        """
        with self._database.write() as session:
            click_sessions.mark_irrelevant(session, account_id, clean(session_id))

    def get_session(self, account_id: str, session_id: str, events_limit: int = 100) -> ClickSession:
        """A session with its first events.

        :raises NotFoundError: the account has no such session.
        """
        events_limit = _limit('events_limit', events_limit, MAX_EVENTS)
        with self._database.read() as session:
            return click_sessions.get_session(session, account_id, clean(session_id), events_limit)

    def release_batch(self, account_id: str, release_id: str) -> ClickBatch:
        """Close the batch that collects; the next session begins another. The same id again gives the same batch.

        :raises NotFoundError: nothing collects, and none was released by this id.
        :raises RegistryError: the id is malformed.
        """
        release_id = check_key('release_id', release_id)
        with self._database.write() as session:
            return click_batches.release(session, account_id, release_id)

    def get_batch(self, account_id: str, batch_id: str) -> ClickBatch:
        """
        :raises NotFoundError: the account has none of this id.
        """
        with self._database.read() as session:
            return click_batches.get_batch(session, account_id, clean(batch_id))

    def list_batches(self, account_id: str, page: int = 1, size: int = 50) -> Page[ClickBatch]:
        """One page of batches, the newest first.

        :raises RegistryError: the page or size (1 to 1000) makes no sense.
        """
        if page < 1:
            raise RegistryError(f'There is no page {page} of batches: pages count from 1')
        size = _limit('size', size)
        with self._database.read() as session:
            return click_batches.list_batches(session, account_id, int(page), size)

    def batch_sessions(
        self, account_id: str, batch_id: str, after_number: int = 0, limit: int = 10, events_limit: int = 100
    ) -> SessionsOfBatch:
        """The sessions of a batch after a number, at most `limit` (1 to 1000) of them with their first events. They are
        fewer where they are large.

        What the answer calls its `last_number` is the `after_number` of the next. A batch that there is not has none.

        :raises RegistryError: a number makes no sense.
        """
        limit, events_limit = _limit('limit', limit), _limit('events_limit', events_limit, MAX_EVENTS)
        with self._database.read() as session:
            return click_sessions.batch_sessions(
                session, account_id, clean(batch_id), max(int(after_number), 0), limit, events_limit
            )

    def all_batch_sessions(self, account_id: str, batch_id: str, size: int = 500) -> Iterator[ClickSession]:
        """All sessions of a batch by their numbers, at most `size` of them in memory at a time."""
        after: int | None = 0
        while after is not None:
            found = self.batch_sessions(account_id, batch_id, after, size, MAX_EVENTS)
            yield from found.sessions
            after = found.last_number

    def delete_user_sessions(self, account_id: str, user_id: str) -> int:
        """Delete all sessions of one user of the client, with their events. Returns how many sessions there were."""
        with self._database.write() as session:
            return click_sessions.delete_of_user(session, account_id, clean(user_id))

    def delete_sessions_before(self, account_id: str | None, time: datetime) -> int:
        """Delete the sessions that are older, with their events. Returns how many sessions there were.

        :param account_id: None for all accounts.
        :param time: with its time zone.
        """
        with self._database.write() as session:
            return click_sessions.delete_before(session, account_id, time)


def check_key(name: str, value: str) -> str:
    """Return an id of a client if it can be stored as it is.

    :raises RegistryError: it is empty, longer than 255 characters, or not text throughout.
    """
    shown = repr(value) if len(repr(value)) <= 80 else f'{repr(value)[:80]}…'
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_KEY:
        raise RegistryError(f'{name} is {shown}: give 1 to {MAX_KEY} characters')
    if clean(value) != value:
        raise RegistryError(f'{name} is {shown}: databases take no U+0000 and no half of a character')
    return value


def check_time(seconds: float | None, oldest: datetime, newest: datetime) -> datetime | None:
    """The time of so many seconds since 1970.

    :raises RegistryError: it is not from `oldest` to `newest`.
    """
    if seconds is None:
        return None
    if math.isfinite(seconds) and oldest.timestamp() <= seconds <= newest.timestamp():
        return datetime.fromtimestamp(seconds, UTC)
    raise RegistryError(f'Invalid utc timestamp: {int(seconds) if math.isfinite(seconds) else seconds}')


def _few(items: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if len(items) > MAX_RESULTS:
        raise RegistryError(f'There are {len(items)} results or events in one request: at most {MAX_RESULTS} are taken')
    return items


def _result(result: Mapping[str, Any], number: int) -> dict[str, Any]:
    place = f'search_results[{number}]'
    kept: dict[str, Any] = {'object_id': check_key(f'{place}.object_id', result['object_id'])}
    for name in ('rank', 'meta'):
        if result.get(name) is not None:
            kept[name] = plain(result[name], f'{place}.{name}')
    return kept


def _event(event: Mapping[str, Any], number: int, time: datetime) -> dict[str, Any]:
    place = f'events[{number}]'
    meta = event.get('meta')
    if meta is not None:
        meta = plain(meta, f'{place}.meta')
        check_size(meta, f'{place}.meta')
    return {
        'event_id': check_key(f'{place}.event_id', event['event_id']),
        'object_id': check_key(f'{place}.object_id', event['object_id']),
        'event_type': check_key(f'{place}.event_type', event.get('event_type') or 'click'),
        'created_at': check_time(event.get('created_at'), datetime.fromtimestamp(0, UTC), time + NEWEST) or time,
        'meta': meta,
    }


def _limit(name: str, value: float, largest: int = MAX_PAGE_SIZE) -> int:
    if not 1 <= value <= largest:
        raise RegistryError(f'{name} is {value}: give 1 to {largest}')
    return int(value)
