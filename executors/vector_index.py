"""The items of accounts by their embeddings, all of one model, in docarray's index in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from docarray import BaseDoc, DocList
from docarray.index import InMemoryExactNNIndex
from docarray.typing import NdArray


class Entry(BaseDoc):
    """An item; its id is the client's."""

    text: str
    meta: dict[str, Any] = {}
    embedding: NdArray


class Hit(NamedTuple):
    object_id: str
    text: str
    meta: dict[str, Any]
    score: float


@dataclass
class VectorIndex:
    """
    :param model: that all embeddings are of.
    """

    model: str
    _of_accounts: dict[str, InMemoryExactNNIndex] = field(default_factory=dict)
    _ids: dict[str, set[str]] = field(default_factory=dict)

    def upsert(self, account_id: str, entries: Sequence[Entry]) -> None:
        """Add items, or put them in the place of those of the same ids."""
        if not entries:
            return
        if account_id not in self._of_accounts:
            self._of_accounts[account_id], self._ids[account_id] = InMemoryExactNNIndex[Entry](), set()
        self._of_accounts[account_id].index(DocList[Entry](entries))
        self._ids[account_id] |= {str(entry.id) for entry in entries}

    def delete(self, account_id: str, object_ids: Sequence[str]) -> None:
        """Delete those of the items that there are."""
        if there := self._ids.get(account_id, set()) & set(object_ids):
            del self._of_accounts[account_id][list(there)]
            self._ids[account_id] -= there

    def search(self, account_id: str, embedding: np.ndarray, limit: int) -> list[Hit]:
        """The nearest items by their cosines, the nearest first.

        :param embedding: of the query, float [D].
        """
        if not self._ids.get(account_id):
            return []
        query: Any = embedding
        found = self._of_accounts[account_id].find(query, search_field='embedding', limit=limit)
        hits = zip(found.documents, found.scores, strict=True)
        return [Hit(entry.id, entry.text, entry.meta, float(score)) for entry, score in hits]
