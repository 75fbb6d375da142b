"""The clickstream, with the routes, bodies and codes of Embedding Studio's first version.

As there, a name that is unknown in a body is dropped: front ends send more than is kept here.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from fastapi.exceptions import HTTPException
from pydantic import BaseModel, ConfigDict, Field

from executors.api.request import Call, Paged, Paging, make_router
from executors.openapi import NOT_FOUND
from executors.parameters import INT53
from executors.told import Sent, Told
from registry.clicks import MAX_EVENTS, MAX_KEY, MAX_PAGE_SIZE, MAX_QUERY, MAX_RESULTS

router = make_router('clickstream')
MISSING: dict[int | str, dict[str, Any]] = {404: {'description': NOT_FOUND}}

Key = Annotated[str, Field(min_length=1, max_length=MAX_KEY, description='An id of the client.')]
KeyQuery = Annotated[str, Query(min_length=1, max_length=MAX_KEY)]
Seconds = Annotated[int, Field(ge=-INT53, le=INT53, description='Seconds since 1970 in UTC, default now.')]


class Lenient(BaseModel):
    """Base of all that is sent here: what is unknown is dropped."""

    model_config = ConfigDict(extra='ignore', hide_input_in_errors=True)


class NewResult(Lenient):
    object_id: Key
    rank: float | None = Field(default=None, description='The score that the search gave it, such as a cosine.')
    meta: Sent | None = Field(default=None, description='What is in the item, or where it is.')


class NewSession(Lenient):
    """A search, and what it showed in which order."""

    session_id: Key
    search_query: str = Field(max_length=MAX_QUERY)
    search_results: list[NewResult] = Field(max_length=MAX_RESULTS)
    search_meta: Sent | None = None
    user_id: Key | None = None
    created_at: Seconds | None = None


class NewEvent(Lenient):
    event_id: Key
    object_id: Key
    event_type: Key = 'click'
    created_at: Seconds | None = None
    meta: Sent | None = Field(default=None, description='The number `importance` is a weight.')


class NewEvents(Lenient):
    """What a user did in a session."""

    session_id: Key
    events: list[NewEvent] = Field(max_length=MAX_RESULTS)


class SessionId(Lenient):
    session_id: Key


class NewRelease(Lenient):
    release_id: Key


class ShownResult(BaseModel):
    object_id: str
    rank: float | None
    meta: Told | None


class Event(BaseModel):
    event_id: str
    object_id: str
    event_type: str
    created_at: int
    meta: Told | None


class Session(BaseModel):
    """A session with its first events. Times are seconds since 1970 in UTC."""

    session_id: str
    search_query: str
    search_results: list[ShownResult]
    search_meta: Told | None
    user_id: str | None
    created_at: int
    is_irrelevant: bool
    events: list[Event]


class NumberedSession(Session):
    session_number: int


class Release(BaseModel):
    release_id: str
    batch_id: str
    released_at: int


class Batch(BaseModel):
    """Sessions that are learned from together. `status` is collecting or released."""

    batch_id: str
    status: str
    sessions: int
    created_at: int
    release_id: str | None
    released_at: int | None


class BatchSessions(BaseModel):
    """Some sessions of a batch. `last_number` is the `after_number` of the next ones, null if there are none here."""

    batch_id: str
    last_number: int | None
    sessions: list[NumberedSession]


class BatchQuery(Lenient):
    batch_id: Key
    after_number: Annotated[int, Query(ge=0, le=INT53)] = 0
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE)] = 10
    events_limit: Annotated[int, Query(ge=1, le=MAX_EVENTS)] = 100


class Deleted(BaseModel):
    """How many sessions there were."""

    deleted: int


@router.post('/clickstream/session', operation_id='register_session')
async def register_session(body: NewSession, call: Call) -> None:
    """Add a session to the batch that collects. One that is there stays as it is.

    Its time lies from 12 hours ago to 5 minutes from now.
    """
    await call.tags('/register_session', **body.model_dump())


@router.post('/clickstream/session/events', operation_id='register_events')
async def register_events(body: NewEvents, call: Call) -> None:
    """Add what a user did in a session, which may come later. An event that is there stays as it is."""
    await call.tags('/register_events', **body.model_dump())


@router.post('/clickstream/session/irrelevant', operation_id='mark_irrelevant', responses=MISSING)
async def mark_irrelevant(body: SessionId, call: Call) -> None:
    """Note that nothing which the session showed was of use."""
    await call.tags('/mark_irrelevant', **body.model_dump())


@router.get('/clickstream/session', operation_id='get_session', responses=MISSING)
async def get_session(session_id: KeyQuery, call: Call) -> Session:
    """A session with its first 100 events."""
    return Session(**await call.tags('/click_session', session_id=session_id))


@router.delete('/clickstream/sessions', operation_id='delete_sessions')
async def delete_sessions(
    call: Call,
    user_id: Annotated[str | None, Query(min_length=1, max_length=MAX_KEY)] = None,
    older_than_days: Annotated[float | None, Query(ge=0, le=36_500)] = None,
) -> Deleted:
    """Delete the sessions of a user, or those that are older, with their events: one of the two is given."""
    if (user_id is None) == (older_than_days is None):
        raise HTTPException(422, "give 'user_id' or 'older_than_days': one of the two")
    return Deleted(**await call.tags('/delete_sessions', user_id=user_id, older_than_days=older_than_days))


@router.post('/clickstream/internal/batch/release', operation_id='release_batch', responses=MISSING)
async def release_batch(body: NewRelease, call: Call) -> Release:
    """Close the batch that collects; the next session begins another. The same id again gives the same batch."""
    return Release(**await call.tags('/release_batch', **body.model_dump()))


@router.get('/clickstream/internal/batch/sessions', operation_id='list_batch_sessions')
async def batch_sessions(query: Annotated[BatchQuery, Query()], call: Call) -> BatchSessions:
    """Sessions of a batch by their numbers. A batch that there is not has none."""
    return BatchSessions(**await call.tags('/batch_sessions', **query.model_dump()))


@router.get('/clickstream/internal/batches', operation_id='list_batches')
async def list_batches(paging: Annotated[Paging, Query()], call: Call) -> Paged[Batch]:
    return Paged[Batch](**await call.tags('/batches', **paging.model_dump()))


@router.get('/clickstream/internal/batch', operation_id='get_batch', responses=MISSING)
async def get_batch(batch_id: KeyQuery, call: Call) -> Batch:
    return Batch(**await call.tags('/batch', batch_id=batch_id))
