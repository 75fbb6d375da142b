"""The users of the drill. Each ingests, fine-tunes, encodes and promotes, and writes down what was accepted."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from docarray.proto import DocListProto

from finetuner.client.session import Session
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import ArtifactNotFoundError, FinetunerServerError
from tools.drill.ledger import Ledger

FRUITS = ('apple', 'fig', 'pear', 'plum', 'quince', 'cherry')
WORDS = ('pie', 'juice', 'tree', 'jam', 'cake', 'salad', 'tart', 'seed')
PROBES = [f'{fruit} {word}' for fruit in FRUITS for word in ('sauce', 'flower')]
AT_ONCE = 2  # runs of an account that wait or are at work
PATIENCE = 600.0  # seconds for which a call is repeated: what the drill asks is whether anything is lost

Answer = TypeVar('Answer')


class Client:
    """One account, in three threads: data and runs, promotions, and encoding.

    :param alias: what this account promotes; None for an account that promotes nothing.
    """

    def __init__(self, ledger: Ledger, host: str, model: str, alias: str | None, stop: threading.Event, seed: int):
        self.ledger, self.model, self.alias = ledger, model, alias
        self._session = Session(host, ledger.token)
        self._stop = stop
        self._random = random.Random(seed)
        loops = [self._fine_tune, self._encode, *([self._promote] if alias else [])]
        self._threads = [threading.Thread(target=self._repeat, args=(loop,), daemon=True) for loop in loops]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _repeat(self, act: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                act()
            except Exception as error:  # no answer of the service is expected to be one
                self.ledger.note(f'{act.__name__.strip("_")} met {type(error).__name__}: {error}')
                self._stop.wait(1)

    def _fine_tune(self) -> None:
        """A new part of a data set, and a run on it, unless enough runs are under way."""
        name = f'fruits-{len(self.ledger.runs) % 4}'
        self.ingest(name)
        usage = self._insist('/usage', lambda: self._session.request('/usage')).tags['runs']
        if usage['waiting'] + usage['at_work'] >= AT_ONCE:
            self._stop.wait(1 + self._random.random())
            return
        self.fit(name)

    def fit(self, name: str) -> None:
        """Start a run on a data set."""
        run_name = f'run-{len(self.ledger.runs):04d}'
        arguments: dict[str, Any] = {
            'model': self.model,
            'train_data': name,
            'run_name': run_name,
            'epochs': 3,
            'batch_size': 8,
            'device': 'cpu',
            'max_retries': 100,
        }
        record = self._insist('/fit', lambda: self._session.request('/fit', **arguments)).tags
        with self.ledger.lock:
            self.ledger.runs[run_name] = record['id']

    def ingest(self, name: str) -> None:
        """Part 0 of a data set if it is new; else, while no run may read it yet, the next part."""
        parts = self.ledger.parts[name]
        if len(parts) >= 3:
            return
        part = len(parts)
        documents = [
            Document(text=f'{fruit} {word} {part}', tags={'finetuner_label': fruit})
            for fruit in FRUITS
            for word in WORDS
        ]
        content = message(documents)
        self._insist('/ingest', lambda: self._session.request('/ingest', content, name=name, part=part))
        with self.ledger.lock:
            parts[part] = len(documents)

    def begin(self) -> None:
        """A first run, promoted, and answering."""
        self.ingest('fruits-0')
        self.fit('fruits-0')
        while not (found := self._insist('/artifacts', lambda: self._session.request('/artifacts')).tags['items']):
            time.sleep(1)
        self._promote_one(found[0])
        self._insist('/encode', lambda: self._session.request('/encode', message([Document(text='ready?')])))

    def _promote_one(self, artifact: dict[str, Any]) -> None:
        chosen = artifact['id']
        self._insist('/promote', lambda: self._session.request('/promote', alias=self.alias, artifact=chosen))
        self.ledger.promoted = chosen

    def _promote(self) -> None:
        """Promote one of the last artifacts."""
        found = self._insist('/artifacts', lambda: self._session.request('/artifacts', page=1, size=5)).tags['items']
        if found:
            self._promote_one(self._random.choice(found))
        self._stop.wait(3 + 4 * self._random.random())

    def _encode(self) -> None:
        """An answer must be whole, and all of it by one artifact."""
        documents = [Document(text=text) for text in PROBES]
        try:
            answer = self._session.request_bytes('/encode', message(documents), return_artifact=True)
        except FinetunerServerError:
            self.ledger.count('/encode', 'refused')
            self._stop.wait(0.5)
            return
        self.ledger.count('/encode', 'accepted')
        answered = DocumentArray.from_protobuf(DocListProto.FromString(answer))
        artifacts = {document.tags['finetuner_artifact'] for document in answered}
        if answered.texts != PROBES or len(artifacts) != 1:
            self.ledger.note(f'an answer of {len(answered)} documents by the artifacts {sorted(artifacts)}')
            return
        self.ledger.check_embeddings(artifacts.pop(), np.asarray(answered.embeddings, np.float32))
        self._stop.wait(0.1)

    def _insist(self, endpoint: str, call: Callable[[], Answer]) -> Answer:
        """Repeat a call until it is answered: all that it may do twice, it does once."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = call()
            except (FinetunerServerError, ArtifactNotFoundError):
                self.ledger.count(endpoint, 'refused')
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                self.ledger.count(endpoint, 'accepted')
                return answer


def message(documents: list[Document]) -> bytes:
    """A serialized `docarray.DocListProto`."""
    return DocumentArray(documents).to_protobuf().SerializeToString()
