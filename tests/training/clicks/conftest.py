"""Sessions that are written by hand, and those of the simulated shop."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count

import pytest

from examples.clicks.shop import Shop
from examples.clicks.users import Behaviour, Visit, visits
from registry.click_records import ClickEvent, ClickSession, SearchResult
from training.clicks.feedback import Feedback, read_feedback

TIME = datetime(2026, 1, 2, tzinfo=UTC)
numbers = count(1)


def session(query: str, shown: str | list[str], clicked: str | list[str] = '', *, irrelevant: bool = False, **options):
    """A session by the object ids that were shown and clicked, one letter each or a list of them."""
    number = next(numbers)
    ranks = options.get('ranks') or [None] * len(shown)
    events = options.get('events') or [
        ClickEvent(f'e{place}', item, 'click', TIME) for place, item in enumerate(clicked)
    ]
    results = [SearchResult(item, rank) for item, rank in zip(shown, ranks, strict=True)]
    return ClickSession(f's{number}', query, results, None, None, TIME, 'batch', number, irrelevant, events)


def feedback(*sessions: ClickSession, **options) -> list[Feedback]:
    return read_feedback(sessions, **options)


def visited(visit: Visit, number: int) -> ClickSession:
    """A visit as the registry would keep it."""
    body = visit.session
    results = [SearchResult(**result) for result in body['search_results']]
    events = [ClickEvent(event['event_id'], event['object_id'], event['event_type'], TIME) for event in visit.events]
    place = TIME, 'batch', number
    return ClickSession(
        body['session_id'], body['search_query'], results, None, body['user_id'], *place, visit.is_irrelevant, events
    )


@pytest.fixture(scope='session')
def shop() -> Shop:
    return Shop()


@pytest.fixture(scope='session')
def simulate(shop):
    """Feedback of so many visits to the shop."""

    def make(number: int, search=None, queries=None, seed: int = 0, **behaviour) -> list[Feedback]:
        found = visits(shop, number, search, Behaviour(**behaviour), queries, seed)
        return read_feedback(visited(visit, place) for place, visit in enumerate(found))

    return make
