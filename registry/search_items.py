"""What can be searched for: the items of accounts, each with the embedding that a model made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from finetuner.excepts import NotFoundError, RegistryError
from registry.accounts import lock_account
from registry.clicks import check_key
from registry.database import Database, find_or_insert
from registry.models import SearchItemRow
from registry.plain import check_size, clean, json_size, plain
from registry.quotas import check_items

MAX_ITEMS = 1000
"""Of one call."""
MAX_TEXT = 100_000
"""Characters of an item."""
ITEM_BYTES = 4096
"""What an item counts beside its text and its `meta`: about what its embedding takes."""


@dataclass(frozen=True, slots=True)
class NewItem:
    """
    :param object_id: of the client, unique within the account.
    :param text: what is searched.
    :param meta: of the client, handed out with it.
    :param embedding: what the model made of the text, the bytes of float32 [D].
    """

    object_id: str
    text: str
    meta: Mapping[str, Any] | None
    embedding: bytes


@dataclass(frozen=True, slots=True)
class SearchItem:
    """
    :param model: that the embedding is of.
    :param revision: another one each time that the text is another.
    """

    id: str
    account_id: str
    object_id: str
    text: str
    meta: dict[str, Any] | None
    model: str
    embedding: bytes
    revision: int


class SearchItems:
    """`Registry.items`. Every method may be called from any thread; what an account owns, no other sees."""

    def __init__(self, database: Database):
        self._database = database

    def upsert(self, account_id: str, model: str, items: Sequence[NewItem]) -> list[SearchItem]:
        """Add items, or put them in the place of those that there are: all of them, or none.

        :param model: that the embeddings are of.
        :return: what there is now, of one `object_id` once.
        :raises RegistryError: a value is malformed, there are more than 1,000 items, or there is no such account.
        :raises QuotaError: the account would have more than `FINETUNER_SEARCH_BYTES`.
        """
        if len(items) > MAX_ITEMS:
            raise RegistryError(f'There are {len(items)} items in one request: at most {MAX_ITEMS} are taken')
        checked = [_checked(item) for item in items]
        with self._database.write() as session:
            lock_account(session, account_id)
            kept = {row.id: row for row in [_upsert(session, account_id, model, item) for item in checked]}
            check_items(session, account_id)
            return [_item(row) for row in kept.values()]

    def delete(self, account_id: str, object_ids: Sequence[str]) -> int:
        """Delete those of the items that there are, and return how many they were."""
        ids = [clean(object_id) for object_id in object_ids]
        owned = SearchItemRow.account_id == account_id, SearchItemRow.object_id.in_(ids)
        with self._database.write() as session:
            lock_account(session, account_id)
            return len(session.scalars(delete(SearchItemRow).where(*owned).returning(SearchItemRow.id)).all())

    def read(self, after: str = '', size: int = 500, not_of: str | None = None) -> list[SearchItem]:
        """Some items of all accounts, by their ids. For the service itself: no owner is checked.

        :param after: the id of the last that is known.
        :param not_of: those alone whose embedding is of another model.
        """
        query = select(SearchItemRow).where(SearchItemRow.id > after)
        if not_of is not None:
            query = query.where(SearchItemRow.model != not_of)
        with self._database.read() as session:
            return [_item(row) for row in session.scalars(query.order_by(SearchItemRow.id).limit(size))]

    def accounts(self) -> set[str]:
        """Those that have items. For the service itself."""
        with self._database.read() as session:
            return set(session.scalars(select(SearchItemRow.account_id).distinct()))

    def set_embeddings(self, model: str, found: Mapping[tuple[str, int], bytes]) -> None:
        """Note what another model made of items, by their id and revision; not of those that are others by now."""
        ids = [item_id for item_id, _ in found]
        with self._database.write() as session:
            owners = session.scalars(select(SearchItemRow.account_id).where(SearchItemRow.id.in_(ids)).distinct())
            # two that change the same items, each in its own order, would wait for each other
            for account_id in sorted(owners):
                with suppress(NotFoundError):  # it has been deleted meanwhile, items and all
                    lock_account(session, account_id)
            for (item_id, revision), embedding in found.items():
                same = SearchItemRow.id == item_id, SearchItemRow.revision == revision
                session.execute(update(SearchItemRow).where(*same).values(model=model, embedding=embedding))


def _checked(item: NewItem) -> NewItem:
    object_id = check_key('object_id', item.object_id)
    if not item.text or len(item.text) > MAX_TEXT:
        raise RegistryError(f'the text of {object_id!r} has {len(item.text)} characters: 1 to {MAX_TEXT} are taken')
    place = f'meta of {object_id!r}'
    meta = None if item.meta is None else plain(item.meta, place)
    check_size(meta, place)
    return NewItem(object_id, clean(item.text), meta, item.embedding)


def _upsert(session: Session, account_id: str, model: str, item: NewItem) -> SearchItemRow:
    size = ITEM_BYTES + len(item.text.encode()) + json_size(item.meta)
    values = {'text': item.text, 'meta': item.meta, 'model': model, 'embedding': item.embedding, 'size': size}
    owned = SearchItemRow.account_id == account_id, SearchItemRow.object_id == item.object_id
    row, is_new = find_or_insert(
        session,
        select(SearchItemRow).where(*owned).with_for_update(),
        lambda: SearchItemRow(account_id=account_id, object_id=item.object_id, revision=1, **values),
    )
    if not is_new:
        for name, value in values.items():
            setattr(row, name, value)
        row.revision += 1
        session.flush()
    return row


def _item(row: SearchItemRow) -> SearchItem:
    return SearchItem(
        row.id, row.account_id, row.object_id, row.text, row.meta, row.model, bytes(row.embedding), row.revision
    )
