"""Fine-tuning by clicks: the part of the registry that knows which tasks there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetuner.excepts import RegistryError
from registry import tuning_tasks
from registry.clicks import MAX_PAGE_SIZE, check_key
from registry.database import Database
from registry.plain import clean, plain
from registry.records import TuningTask

MAX_SKIP = 2**31


class Tuning:
    """`Registry.tuning`. Every method may be called from any thread; what an account owns, no other sees."""

    def __init__(self, database: Database):
        self._database = database

    def create_task(
        self,
        account_id: str,
        method: str,
        config: Mapping[str, Any],
        *,
        batch_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> tuple[TuningTask, bool]:
        """Make a task, and the run that carries it, which waits in the queue like any other.

        :param method: the name of the fine-tuning method.
        :param config: of the run: how it is worked on.
        :param batch_id: a released batch. None: that which collects when the run begins.
        :param metadata: of the client.
        :param idempotency_key: of the client. The same one again gives the same task, whatever else is asked for.
        :return: the task, and whether it was made by this call.
        :raises NotFoundError: the account has no such batch.
        :raises RegistryError: the batch still collects, a value is malformed, or the account is at the end of its
            quota.
        """
        if idempotency_key is not None:
            idempotency_key = check_key('idempotency_key', idempotency_key)
        kept = None if metadata is None else plain(metadata, 'metadata')
        batch_id = None if batch_id is None else clean(batch_id)
        with self._database.write() as session:
            return tuning_tasks.create_task(session, account_id, method, dict(config), batch_id, kept, idempotency_key)

    def get_task(self, account_id: str, task_id: str) -> TuningTask:
        """
        :raises NotFoundError: the account has none of this id.
        """
        with self._database.read() as session:
            return tuning_tasks.get_task(session, account_id, clean(task_id))

    def get_task_by_id(self, task_id: str) -> TuningTask:
        """For the service itself: no owner is checked.

        :raises NotFoundError: there is none of this id.
        """
        with self._database.read() as session:
            return tuning_tasks.get_task_by_id(session, task_id)

    def list_tasks(
        self, account_id: str, skip: int = 0, limit: int = 100, status: str | None = None
    ) -> list[TuningTask]:
        """Some tasks, the oldest first.

        :param skip: how many of them are passed over.
        :param limit: how many there are at most, 1 to 1000.
        :param status: 'pending', 'processing', 'done', 'error' or 'canceled'; None for all.
        :raises RegistryError: a value makes no sense.
        """
        if not 0 <= skip <= MAX_SKIP or not 1 <= limit <= MAX_PAGE_SIZE:
            raise RegistryError(
                f'There are no tasks {skip} and the {limit} after it: skip begins at 0, limit is 1 to {MAX_PAGE_SIZE}'
            )
        known = sorted(tuning_tasks.STATUSES.values())
        if status is not None and status not in known:
            raise RegistryError(f'status is {status!r}: give {" or ".join(known)}')
        with self._database.read() as session:
            return tuning_tasks.list_tasks(session, account_id, int(skip), int(limit), status)

    def cancel_task(self, account_id: str, task_id: str) -> TuningTask:
        """End a task, whatever its status. What was promoted stays so.

        :raises NotFoundError: the account has none of this id.
        """
        with self._database.write() as session:
            return tuning_tasks.cancel_task(session, account_id, clean(task_id))

    def restart_task(self, account_id: str, task_id: str) -> TuningTask:
        """Have a task that has ended worked on again, with the batch that it had. One that waits or is at work goes on.

        :raises NotFoundError: the account has none of this id.
        """
        with self._database.write() as session:
            return tuning_tasks.restart_task(session, account_id, clean(task_id))

    def set_batch(self, task_id: str, batch_id: str) -> None:
        """Note what a task learns from. For the service itself.

        :raises NotFoundError: there is no such task.
        """
        with self._database.write() as session:
            tuning_tasks.set_batch(session, task_id, batch_id)
