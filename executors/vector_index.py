"""The items of accounts by their embeddings, all of one model; by default in docarray's index in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from docarray import BaseDoc, DocList
from docarray.index import InMemoryExactNNIndex
from docarray.typing import NdArray

from registry.search_items import SearchItem


class Hit(NamedTuple):
    """
    :param score: the cosine of the item and the query.
    """

    object_id: str
    text: str
    meta: dict[str, Any]
    score: float


class VectorIndex(Protocol):
    """What an index can do. Whoever changes items sees to it that nobody else does so at the time."""

    @property
    def model(self) -> str:
        """That all embeddings are of."""

    def upsert(self, items: Sequence[SearchItem]) -> None:
        """Add items, or put them in the place of those of the same account and `object_id`. They have embeddings of
        this index's model.
        """

    def sync(self, items: Sequence[SearchItem], after: str, last: str | None) -> None:
        """The same; and remove all others whose ids come after `after` and, unless `last` is None, not after that."""

    def delete(self, account_id: str, object_ids: Collection[str]) -> None:
        """Delete those of the items that there are."""

    def keep_accounts(self, account_ids: Collection[str]) -> None:
        """Remove the items of all others."""

    def build(self) -> None:
        """Make ready what makes a search fast. Others may search and change the index meanwhile."""

    def search(self, account_id: str, embedding: np.ndarray, limit: int) -> list[Hit]:
        """The nearest items by their cosines, the nearest first.

        :param embedding: of the query, float [D].
        """


class Entry(BaseDoc):
    """An item; its id is the client's."""

    text: str
    meta: dict[str, Any] = {}
    embedding: NdArray


@dataclass
class MemoryIndex:
    """Compares a query with every item of the account. It begins empty."""

    model: str
    _of_accounts: dict[str, InMemoryExactNNIndex] = field(default_factory=dict)
    _ids: dict[str, set[str]] = field(default_factory=dict)

    def upsert(self, items: Sequence[SearchItem]) -> None:
        for account_id in {item.account_id for item in items}:
            if account_id not in self._of_accounts:
                self._of_accounts[account_id], self._ids[account_id] = InMemoryExactNNIndex[Entry](), set()
            entries = [_entry(item) for item in items if item.account_id == account_id]
            self._of_accounts[account_id].index(DocList[Entry](entries))
            self._ids[account_id] |= {str(entry.id) for entry in entries}

    def sync(self, items: Sequence[SearchItem], after: str, last: str | None) -> None:
        self.upsert(items)  # there are no others

    def delete(self, account_id: str, object_ids: Collection[str]) -> None:
        if there := self._ids.get(account_id, set()) & set(object_ids):
            del self._of_accounts[account_id][list(there)]
            self._ids[account_id] -= there

    def keep_accounts(self, account_ids: Collection[str]) -> None:
        for account_id in self._ids.keys() - set(account_ids):
            del self._ids[account_id], self._of_accounts[account_id]

    def build(self) -> None:
        """There is nothing to make."""

    def search(self, account_id: str, embedding: np.ndarray, limit: int) -> list[Hit]:
        index = self._of_accounts.get(account_id)
        if index is None or not self._ids.get(account_id):
            return []
        query: Any = embedding
        found = index.find(query, search_field='embedding', limit=limit)
        hits = zip(found.documents, found.scores, strict=True)
        return [Hit(entry.id, entry.text, entry.meta, float(score)) for entry, score in hits]


def _entry(item: SearchItem) -> Entry:
    values: dict[str, Any] = {'id': item.object_id, 'text': item.text, 'meta': dict(item.meta or {})}
    embedding: Any = np.frombuffer(item.embedding, np.float32)
    return Entry(**values, embedding=embedding)
