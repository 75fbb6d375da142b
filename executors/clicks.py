"""ClickstreamExecutor: takes in what users searched for, what they were shown, and what they chose."""

import os
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from jina import Executor, requests

from executors.answers import answer, answer_page, describe_batch, describe_session
from executors.endpoints import unknown_endpoint
from executors.lifetime import prepare_process
from executors.opening import open_registry
from executors.parameters import (
    BatchesParameters,
    BatchParameters,
    BatchSessionsParameters,
    DeleteSessionsParameters,
    EventsParameters,
    ReleaseParameters,
    SessionIdParameters,
    SessionParameters,
)
from finetuner.documents import DocumentArray
from finetuner.excepts import ParameterError

RETENTION = 'FINETUNER_CLICK_DAYS'
INTERVAL = 3600.0
"""Seconds between two looks for sessions that are too old."""


class ClickstreamExecutor(Executor):
    """Keeps click sessions, their events, and the batches that are learned from. Every endpoint needs a token.

    :param retention_days: delete sessions of every account that are older, default `FINETUNER_CLICK_DAYS` or never.
    """

    def __init__(self, retention_days: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        prepare_process(self)
        if retention_days is None and (days := os.environ.get(RETENTION)):
            retention_days = _read_days(days)
        if retention_days is not None and not retention_days > 0:
            raise ValueError(f'retention_days is {retention_days:g}: give a number above 0 ({RETENTION})')
        self.registry = open_registry(self.logger)
        self._ending = threading.Event()
        self._expiry: threading.Thread | None = None
        if retention_days is not None:
            age = timedelta(days=retention_days)
            self._expiry = threading.Thread(target=self._expire, args=(age,), name='expiry', daemon=True)
            self._expiry.start()

    def close(self) -> None:
        self._ending.set()
        if self._expiry is not None:
            self._expiry.join()
        self.registry.close()

    def _expire(self, age: timedelta) -> None:
        while True:
            try:
                if deleted := self.registry.clicks.delete_sessions_before(None, datetime.now(UTC) - age):
                    self.logger.info(f'{deleted} click sessions were older than {age.days} days and are deleted')
            except Exception:  # such as a database that is away for a while: the next look makes up for it
                self.logger.exception('Click sessions that are too old could not be deleted')
            if self._ending.wait(INTERVAL):
                return

    @requests(on='/register_session')
    def register_session(self, docs: DocumentArray, parameters: SessionParameters, **kwargs: Any) -> DocumentArray:
        """Add a session to the batch that collects. One that is there stays as it is."""
        account = self.registry.authenticate(parameters.secret)
        is_new = self.registry.clicks.register_session(
            account.id,
            parameters.session_id,
            parameters.search_query,
            [result.model_dump() for result in parameters.search_results],
            search_meta=parameters.search_meta,
            user_id=parameters.user_id,
            created_at=parameters.created_at,
        )
        return answer(session_id=parameters.session_id, is_new=is_new)

    @requests(on='/register_events')
    def register_events(self, docs: DocumentArray, parameters: EventsParameters, **kwargs: Any) -> DocumentArray:
        """Add what a user did, and answer how much of it is new. The session may come later."""
        account = self.registry.authenticate(parameters.secret)
        events = [event.model_dump() for event in parameters.events]
        added = self.registry.clicks.register_events(account.id, parameters.session_id, events)
        return answer(session_id=parameters.session_id, added=added)

    @requests(on='/mark_irrelevant')
    def mark_irrelevant(self, docs: DocumentArray, parameters: SessionIdParameters, **kwargs: Any) -> DocumentArray:
        """Note that nothing which the session showed was of use."""
        account = self.registry.authenticate(parameters.secret)
        self.registry.clicks.mark_irrelevant(account.id, parameters.session_id)
        return answer(session_id=parameters.session_id, is_irrelevant=True)

    @requests(on='/click_session')
    def click_session(self, docs: DocumentArray, parameters: SessionIdParameters, **kwargs: Any) -> DocumentArray:
        """A session with its first 100 events."""
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_session(self.registry.clicks.get_session(account.id, parameters.session_id)))

    @requests(on='/release_batch')
    def release_batch(self, docs: DocumentArray, parameters: ReleaseParameters, **kwargs: Any) -> DocumentArray:
        """Close the batch that collects, and return it. The same id again returns the same batch."""
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_batch(self.registry.clicks.release_batch(account.id, parameters.release_id)))

    @requests(on='/batch')
    def batch(self, docs: DocumentArray, parameters: BatchParameters, **kwargs: Any) -> DocumentArray:
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_batch(self.registry.clicks.get_batch(account.id, parameters.batch_id)))

    @requests(on='/batches')
    def batches(self, docs: DocumentArray, parameters: BatchesParameters, **kwargs: Any) -> DocumentArray:
        """A page of batches, the newest first."""
        account = self.registry.authenticate(parameters.secret)
        found = self.registry.clicks.list_batches(account.id, parameters.page, parameters.size)
        return answer_page(found, describe_batch)

    @requests(on='/batch_sessions')
    def batch_sessions(self, docs: DocumentArray, parameters: BatchSessionsParameters, **kwargs: Any) -> DocumentArray:
        """Sessions of a batch after a number; `last_number` is the next such number."""
        account = self.registry.authenticate(parameters.secret)
        found = self.registry.clicks.batch_sessions(
            account.id, parameters.batch_id, parameters.after_number, parameters.limit, parameters.events_limit
        )
        sessions = [{**describe_session(session), 'session_number': session.number} for session in found.sessions]
        return answer(batch_id=found.batch_id, last_number=found.last_number, sessions=sessions)

    @requests(on='/delete_sessions')
    def delete_sessions(
        self, docs: DocumentArray, parameters: DeleteSessionsParameters, **kwargs: Any
    ) -> DocumentArray:
        """Delete the sessions of a user, or those that are older, with their events."""
        account = self.registry.authenticate(parameters.secret)
        if (parameters.user_id is None) == (parameters.older_than_days is None):
            raise ParameterError("give 'user_id' or 'older_than_days': one of the two")
        if parameters.user_id is not None:
            return answer(deleted=self.registry.clicks.delete_user_sessions(account.id, parameters.user_id))
        before = datetime.now(UTC) - timedelta(days=parameters.older_than_days or 0)
        return answer(deleted=self.registry.clicks.delete_sessions_before(account.id, before))

    @requests
    def unknown(self, docs: DocumentArray, **kwargs: Any) -> DocumentArray:
        raise unknown_endpoint(self)


def _read_days(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'{RETENTION} is {text!r}: give a number of days above 0') from None
