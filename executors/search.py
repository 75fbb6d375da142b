"""SearchExecutor: keeps items, finds those that a query means, and has what it showed learned from."""

import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jina import Executor, requests

from executors.answers import answer
from executors.artifacts import find_artifact
from executors.encoder import DEFAULT_MODEL
from executors.endpoints import unknown_endpoint
from executors.following import Follower
from executors.lifetime import ended_by_signals, prepare_process
from executors.opening import open_database, open_registry
from executors.parameters import DeleteItemsParameters, SearchParameters, TokenParameters, shorten
from executors.pgvector_index import PgVectorIndex, PgVectors
from executors.vector_index import MemoryIndex, VectorIndex
from finetuner import settings
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import DataError, RegistryError
from finetuner.inference import InferenceEngine, load_engine
from finetuner.inference.engine import name_document
from finetuner.inference.remote import without_secrets
from registry.plain import MAX_JSON, clean, json_size
from registry.search_items import NewItem, SearchItem
from training.numbers import integers

PIECE = 256
"""Items that are embedded at once."""
TEND_SECONDS = 60.0
"""Between two looks at what the index needs."""
CLOSE_SECONDS = 5.0
"""For what is being done for the index; what takes longer goes on in the database alone."""
JSON_ROOM = 8
"""Bytes of JSON around a value of a list: more than there are."""


@dataclass(frozen=True)
class Searched:
    """A model, and the index of what it made of all items."""

    engine: InferenceEngine
    index: VectorIndex


class SearchExecutor(Executor):
    """Searches the items of an account by the meaning of their texts. Every endpoint needs a token.

    Items, and their embeddings, are in the registry; the index of them is in memory, and made again at the start, or in
    PostgreSQL with pgvector. There is one such executor for a registry.

    :param artifact: what embeds items and queries, as of FinetunerExecutor; default `FINETUNER_ARTIFACT`. An alias is
        followed: what is promoted embeds all items in the background, while the model before it answers, and then takes
        its place, index and all.
    :param model: what embeds as long as an alias names nothing: a pretrained model by name, or a model directory;
        default `FINETUNER_SEARCH_MODEL` or all-minilm-l6-v2.
    :param token: needed to load an artifact of the service; default `FINETUNER_TOKEN` or the credentials file.
    :param device: 'cpu' or 'cuda', default `FINETUNER_DEVICE` or 'cpu'.
    :param index_url: a database with pgvector for the index, `postgresql://user:password@host/name`, default
        `FINETUNER_SEARCH_INDEX_URL` (or the file that `FINETUNER_SEARCH_INDEX_URL_FILE` names), or else in memory.
    """

    def __init__(
        self,
        artifact: str | None = None,
        model: str | None = None,
        token: str | None = None,
        device: str | None = None,
        index_url: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        prepare_process(self)
        self._load = partial(load_engine, device=device or os.environ.get('FINETUNER_DEVICE') or 'cpu', choices={})
        self.registry = open_registry(self.logger)
        model = model or os.environ.get('FINETUNER_SEARCH_MODEL') or DEFAULT_MODEL
        artifact = artifact or os.environ.get('FINETUNER_ARTIFACT') or model
        self._writing = threading.Lock()
        self._deleted: set[tuple[str, str]] | None = None  # account and item, while another index is made
        self._closing = threading.Event()
        self._vectors: PgVectors | None = None
        try:
            if index_url := index_url or settings.secret('FINETUNER_SEARCH_INDEX_URL'):
                self._vectors = open_database(partial(PgVectors, index_url, self.logger), self.logger)
            found, store = find_artifact(artifact, token, self.logger)
            engine = self._load(model if found is None else found.source)
        except Exception as error:
            self.logger.critical(f'cannot search by {without_secrets(artifact)}: {error}')
            raise
        by = model if found is None else found.id
        with ended_by_signals():
            self.searched = Searched(engine, self._make_index(engine, by))
        place = 'the memory of this process' if self._vectors is None else self._vectors.place
        self.logger.info(f'searching by {by}; the index is in {place}')
        current = None if found is None else found.id
        self._store = store
        self._follower = None if store is None else Follower(artifact, store, current, self._switch, self.logger)
        self._keeper = threading.Thread(target=self._tend, name='keeper of the index', daemon=True)
        self._keeper.start()

    def close(self) -> None:
        self._closing.set()
        if self._follower is not None:
            self._follower.close()
        self._keeper.join(CLOSE_SECONDS)
        if self._vectors is not None:
            self._vectors.close()
        self.registry.close()

    @requests(on='/upsert')
    def upsert(self, docs: DocumentArray, parameters: TokenParameters, **kwargs: Any) -> DocumentArray:
        """Add items, or put them in the place of those of the same ids: of each document its id, its text, its tags."""
        account = self.registry.authenticate(parameters.secret)
        for position, document in enumerate(docs):
            _check_item(document, position)
        with self._writing:
            searched = self.searched
            embeddings = searched.engine.encode_texts([str(document.text) for document in docs])
            for document, is_finite in zip(docs, np.isfinite(embeddings).all(1), strict=True):
                if not is_finite:
                    raise DataError(f'the model makes no embedding of the text of {document.id!r}: numbers overflow')
            new = [
                NewItem(str(document.id), str(document.text), integers(document.tags) or None, embedding.tobytes())
                for document, embedding in zip(docs, embeddings, strict=True)
            ]
            items = self.registry.items.upsert(account.id, searched.index.model, new)
            searched.index.upsert(items)
            if self._deleted is not None:
                self._deleted -= {(account.id, item.object_id) for item in items}
        return answer(upserted=len(docs))

    @requests(on='/delete_items')
    def delete_items(self, docs: DocumentArray, parameters: DeleteItemsParameters, **kwargs: Any) -> DocumentArray:
        """Delete those of the items that there are."""
        account = self.registry.authenticate(parameters.secret)
        object_ids = [clean(object_id) for object_id in parameters.object_ids]
        with self._writing:
            # first from the index: what is left in the registry alone comes back to it at the next start
            self.searched.index.delete(account.id, object_ids)
            deleted = self.registry.items.delete(account.id, object_ids)
            if self._deleted is not None:
                self._deleted |= {(account.id, object_id) for object_id in object_ids}
        return answer(deleted=deleted)

    @requests(on='/search')
    def search(self, docs: DocumentArray, parameters: SearchParameters, **kwargs: Any) -> DocumentArray:
        """The nearest items to the text of the one document. With `create_session`, what was shown becomes a session of
        the clickstream, whose id is in the answer.

        :raises RegistryError: `session_id` is that of a session of another query.
        """
        account = self.registry.authenticate(parameters.secret)
        if len(docs) != 1 or not (docs[0].text or '').strip():
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
            is_new = self.registry.clicks.register_session(
                account.id, session_id, query, _within_room(results), user_id=parameters.user_id
            )
            if not is_new and self.registry.clicks.get_session(account.id, session_id).search_query != clean(query):
                raise RegistryError(
                    f'the session {shorten(session_id)} is of another query: give this one a session_id of its own'
                )
        return answer(search_results=results, session_id=session_id, model=searched.index.model)

    @requests
    def unknown(self, docs: DocumentArray, **kwargs: Any) -> DocumentArray:
        raise unknown_endpoint(self)

    def _switch(self, artifact_id: str) -> None:
        """Embed all items by another model, and then search by it. Writers wait for the last few items alone."""
        assert self._store is not None
        engine = self._load(self._store.file_of(artifact_id))
        with self._writing:
            self._deleted = set()
        try:
            index = self._make_index(engine, artifact_id)
            while self._catch_up(index, engine) > PIECE:  # what has come meanwhile, embedded by the model before
                pass
            with self._writing:
                for account_id in {account_id for account_id, _ in self._deleted}:
                    index.delete(account_id, {object_id for owner, object_id in self._deleted if owner == account_id})
                self._catch_up(index, engine)
                self.searched = Searched(engine, index)
        finally:
            with self._writing:  # who deletes looks whether it is there, and then adds to it
                self._deleted = None
        self.logger.info(f'searching by the artifact {artifact_id}')

    def _catch_up(self, index: VectorIndex, engine: InferenceEngine) -> int:
        """Put the items into an index whose embeddings are not of its model, and return how many they were."""
        count = 0
        for items in self._pages(index.model):
            index.upsert(self._embedded(items, engine, index.model))
            count += len(items)
        return count

    def _pages(self, not_of: str | None = None) -> Iterator[list[SearchItem]]:
        """All items, or those whose embeddings are not of this model.

        :raises RuntimeError: the executor is to end.
        """
        after = ''
        while items := self.registry.items.read(after, PIECE, not_of):
            if self._closing.is_set():
                raise RuntimeError('the executor ends')
            yield items
            after = items[-1].id

    def _make_index(self, engine: InferenceEngine, model: str) -> VectorIndex:
        """The index of what a model makes of all items."""
        index: VectorIndex = MemoryIndex(model) if self._vectors is None else self._vectors.index(model, engine.dim)
        after = ''
        for items in self._pages():
            index.sync(self._embedded(items, engine, model), after, items[-1].id)
            after = items[-1].id
        index.sync([], after, None)
        return index

    def _embedded(self, items: list[SearchItem], engine: InferenceEngine, model: str) -> list[SearchItem]:
        """The items with embeddings of this model; those of another are made again, and kept. An item that the model
        cannot embed is left out.
        """
        others = [item for item in items if item.model != model]
        if others:
            made = [row.tobytes() for row in engine.encode_texts([item.text for item in others])]
            fresh = {(item.id, item.revision): embedding for item, embedding in zip(others, made, strict=True)}
            self.registry.items.set_embeddings(model, fresh)
            items = [replace(item, embedding=fresh.get((item.id, item.revision), item.embedding)) for item in items]
        embedded = []
        for item in items:
            if np.isfinite(np.frombuffer(item.embedding, np.float32)).all():
                embedded.append(item)
            else:
                self.logger.warning(f'the item {item.object_id!r} cannot be found: {model} makes no embedding of it')
        return embedded

    def _tend(self) -> None:
        """Do for the index, again and again, what nobody waits for."""
        before: Searched | None = None
        while True:
            try:
                before = self._look_after(before)
            except Exception:  # a database that is away for a while
                self.logger.exception('the index could not be looked after')
            if self._closing.wait(TEND_SECONDS):
                return

    def _look_after(self, before: Searched | None) -> Searched:
        """
        :param before: what was searched at the last look. Nobody searches any more what was searched before that.
        """
        if self._vectors is not None:
            self._vectors.hold()
        with self._writing:
            searched = self.searched
            searched.index.keep_accounts(self.registry.items.accounts())
            # while another index is made, its table is not to be dropped
            if isinstance(searched.index, PgVectorIndex) and searched is before and self._deleted is None:
                assert self._vectors is not None
                self._vectors.drop_others({searched.index.table})
        searched.index.build()
        return searched


def _check_item(document: Document, position: int) -> None:
    """
    :raises DataError: the document is no item.
    """
    named = name_document(position, document)
    if not (document.text or '').strip():
        raise DataError(f'{named} has no text: white space is none')
    if (document.tags or {}).get('text', document.text) != document.text:
        raise DataError(
            f"{named} has a tag 'text' that is not its text, which is found under that name: give the tag another"
        )


def _within_room(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results as a session has room for them: of those that it has none for, their ids and scores are kept."""
    kept, room = [], MAX_JSON - JSON_ROOM
    for result in results:
        room -= json_size(result['meta']) + JSON_ROOM
        kept.append(result if room >= 0 else {**result, 'meta': None})
    return kept
