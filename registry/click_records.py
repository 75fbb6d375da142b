"""What the registry hands out of clicks: plain values, never rows of the database. All times are in UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

COLLECTING = 'collecting'
RELEASED = 'released'


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A result as it was shown.

    :param rank: the score that the search gave it, such as a cosine; None if it was not told.
    :param meta: of the client: where the item is, what is in it.
    """

    object_id: str
    rank: float | None = None
    meta: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ClickEvent:
    """What a user did with a result.

    :param event_id: of the client, unique within the session.
    :param event_type: 'click', or whatever else the client tells apart.
    """

    event_id: str
    object_id: str
    event_type: str
    created_at: datetime
    meta: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ClickSession:
    """A search, what it showed in which order, and what the user did with it.

    :param session_id: of the client, unique within the account.
    :param number: within its batch, from 1 on.
    :param events: the oldest first.
    :param is_irrelevant: the user, or the client, said that nothing shown was of use.
    """

    session_id: str
    search_query: str
    search_results: list[SearchResult]
    search_meta: dict[str, Any] | None
    user_id: str | None
    created_at: datetime
    batch_id: str
    number: int
    is_irrelevant: bool = False
    events: list[ClickEvent] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ClickBatch:
    """Sessions that are learned from together.

    :param status: 'collecting' or 'released'.
    :param sessions: how many there are now.
    """

    id: str
    status: str
    sessions: int
    created_at: datetime
    release_id: str | None
    released_at: datetime | None


@dataclass(frozen=True, slots=True)
class SessionsOfBatch:
    """Some sessions of a batch, by their numbers.

    :param last_number: where the next ones begin; None if there are none here.
    """

    batch_id: str
    last_number: int | None
    sessions: list[ClickSession]
