"""SearchExecutor: keeps items, finds those that a query means, and has what it showed learned from."""

import os
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jina import Executor, requests

from executors.answers import answer
from executors.artifacts import find_artifact
from executors.drain import drain_at_shutdown
from executors.encoder import DEFAULT_MODEL
from executors.endpoints import unknown_endpoint
from executors.following import Follower
from executors.lifetime import end_with_parent
from executors.opening import open_registry
from executors.parameters import DeleteItemsParameters, SearchParameters, TokenParameters
from executors.vector_index import Entry, VectorIndex
from finetuner.documents import DocumentArray
from finetuner.excepts import DataError
from finetuner.inference import InferenceEngine, load_engine
from finetuner.inference.remote import without_secrets
from registry.plain import MAX_JSON, json_size
from registry.search_items import NewItem, SearchItem

PIECE = 256
"""Items that are embedded at once."""
JSON_ROOM = 8
"""Bytes of JSON around a value of a list: more than there are."""


@dataclass(frozen=True)
class Searched:
    """A model, and the index of what it made of all items."""

    engine: InferenceEngine
    index: VectorIndex


class SearchExecutor(Executor):
    """Searches the items of an account by the meaning of their texts. Every endpoint needs a token.

    Items, and their embeddings, are in the registry; the index is in memory, and made again at the start. There is one
    such executor for a registry.

    :param artifact: what embeds items and queries, as of FinetunerExecutor; default `FINETUNER_ARTIFACT`. An alias is
        followed: what is promoted embeds all items in the background, while the model before it answers, and then takes
        its place, index and all.
    :param model: what embeds as long as an alias names nothing: a pretrained model by name, or a model directory;
        default `FINETUNER_SEARCH_MODEL` or all-minilm-l6-v2.
    :param token: needed to load an artifact of the service; default `FINETUNER_TOKEN` or the credentials file.
    :param device: 'cpu' or 'cuda', default `FINETUNER_DEVICE` or 'cpu'.
    """

    def __init__(
        self,
        artifact: str | None = None,
        model: str | None = None,
        token: str | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        end_with_parent()
        drain_at_shutdown()
        self._device = device or os.environ.get('FINETUNER_DEVICE') or 'cpu'
        self.registry = open_registry(self.logger)
        model = model or os.environ.get('FINETUNER_SEARCH_MODEL') or DEFAULT_MODEL
        artifact = artifact or os.environ.get('FINETUNER_ARTIFACT') or model
        self._writing = threading.Lock()
        self._deleted: set[tuple[str, str]] | None = None  # account and item, while another index is made
        try:
            found, store = find_artifact(artifact, token, self.logger)
            engine = load_engine(model if found is None else found.source, device=self._device, is_measured=True)
        except Exception as error:
            self.logger.critical(f'cannot search by {without_secrets(artifact)}: {error}')
            raise
        self.searched = Searched(engine, self._make_index(engine, model if found is None else found.id))
        current = None if found is None else found.id
        self._store = store
        self._follower = None if store is None else Follower(artifact, store, current, self._switch, self.logger)

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()
        self.registry.close()

    @requests(on='/upsert')
    def upsert(self, docs: DocumentArray, parameters: TokenParameters, **kwargs: Any) -> DocumentArray:
        """Add items, or put them in the place of those of the same ids: of each document its id, its text, its tags."""
        account = self.registry.authenticate(parameters.secret)
        for position, document in enumerate(docs):
            if not document.text:
                raise DataError(f'document {position} (id {document.id!r}) has no text')
        with self._writing:
            searched = self.searched
            embeddings = searched.engine.encode_texts([str(document.text) for document in docs])
            items = [
                NewItem(str(document.id), str(document.text), document.tags or None, embedding.tobytes())
                for document, embedding in zip(docs, embeddings, strict=True)
            ]
            self.registry.items.upsert(account.id, searched.index.model, items)
            entries = [_entry(item, embedding) for item, embedding in zip(items, embeddings, strict=True)]
            searched.index.upsert(account.id, entries)
            if self._deleted is not None:
                self._deleted -= {(account.id, item.object_id) for item in items}
        return answer(upserted=len(docs))

    @requests(on='/delete_items')
    def delete_items(self, docs: DocumentArray, parameters: DeleteItemsParameters, **kwargs: Any) -> DocumentArray:
        """Delete those of the items that there are."""
        account = self.registry.authenticate(parameters.secret)
        with self._writing:
            deleted = self.registry.items.delete(account.id, parameters.object_ids)
            if self._deleted is not None:
                self._deleted |= {(account.id, object_id) for object_id in parameters.object_ids}
            self.searched.index.delete(account.id, parameters.object_ids)
        return answer(deleted=deleted)

    @requests(on='/search')
    def search(self, docs: DocumentArray, parameters: SearchParameters, **kwargs: Any) -> DocumentArray:
        """The nearest items to the text of the one document. With `create_session`, what was shown becomes a session of
        the clickstream, whose id is in the answer.
        """
        account = self.registry.authenticate(parameters.secret)
        if len(docs) != 1 or not docs[0].text:
            raise DataError('send one document, whose text is the query')
        query, searched = str(docs[0].text), self.searched
        [embedding] = searched.engine.encode_texts([query])
        hits = searched.index.search(account.id, embedding, parameters.limit)
        results = [
            {'object_id': hit.object_id, 'rank': hit.score, 'meta': {**hit.meta, 'text': hit.text}} for hit in hits
        ]
        session_id = None
        if parameters.create_session:
            session_id = parameters.session_id or str(uuid.uuid4())
            self.registry.clicks.register_session(
                account.id, session_id, query, _within_room(results), user_id=parameters.user_id
            )
        return answer(search_results=results, session_id=session_id, model=searched.index.model)

    @requests
    def unknown(self, docs: DocumentArray, **kwargs: Any) -> DocumentArray:
        raise unknown_endpoint(self)

    def _switch(self, artifact_id: str) -> None:
        """Embed all items by another model, and then search by it. Writers wait for the last few items alone."""
        assert self._store is not None
        engine = load_engine(self._store.file_of(artifact_id), device=self._device, is_measured=True)
        with self._writing:
            self._deleted = set()
        try:
            index = self._make_index(engine, artifact_id)
            with self._writing:
                for account_id, object_id in self._deleted:
                    index.delete(account_id, [object_id])
                # what has come meanwhile, embedded by the model before
                self._add(index, engine, _pages(self.registry.items.read, artifact_id))
                self.searched = Searched(engine, index)
        finally:
            with self._writing:  # who deletes looks whether it is there, and then adds to it
                self._deleted = None
        self.logger.info(f'searching by the artifact {artifact_id}')

    def _make_index(self, engine: InferenceEngine, model: str) -> VectorIndex:
        index = VectorIndex(model)
        self._add(index, engine, _pages(self.registry.items.read, None))
        return index

    def _add(self, index: VectorIndex, engine: InferenceEngine, pages: Iterable[list[SearchItem]]) -> None:
        """Put items into an index; embeddings of another model are made again, and kept."""
        for items in pages:
            others = [item for item in items if item.model != index.model]
            fresh: dict[tuple[str, int], np.ndarray] = {}
            if others:
                made = engine.encode_texts([item.text for item in others])
                fresh = {(item.id, item.revision): row for item, row in zip(others, made, strict=True)}
            self.registry.items.set_embeddings(index.model, {key: row.tobytes() for key, row in fresh.items()})
            for account_id in {item.account_id for item in items}:
                index.upsert(
                    account_id,
                    [
                        _entry(item, fresh.get((item.id, item.revision), np.frombuffer(item.embedding, np.float32)))
                        for item in items
                        if item.account_id == account_id
                    ],
                )


def _entry(item: NewItem | SearchItem, embedding: np.ndarray) -> Entry:
    values: dict[str, Any] = {'id': item.object_id, 'text': item.text, 'meta': dict(item.meta or {})}
    return Entry(**values, embedding=embedding)  # type: ignore[arg-type]  # it takes any array


def _within_room(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results as a session has room for them: of those that it has none for, their ids and scores are kept."""
    kept, room = [], MAX_JSON - JSON_ROOM
    for result in results:
        room -= json_size(result['meta']) + JSON_ROOM
        kept.append(result if room >= 0 else {**result, 'meta': None})
    return kept


def _pages(read: Any, not_of: str | None) -> Iterable[list[SearchItem]]:
    after = ''
    while items := read(after, PIECE, not_of):
        yield items
        after = items[-1].id
