"""The models of one artifact behind one door: each document goes to the one that takes it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from finetuner.excepts import DataError
from finetuner.inference.admission import Admission
from finetuner.inference.engine import InferenceEngine, name_document
from finetuner.inference.preprocessing import Modality
from finetuner.inference.server import ModelServer

if TYPE_CHECKING:
    from finetuner.documents import Content


def check_together(engines: Collection[InferenceEngine]) -> None:
    """:raises ValueError: two of them take the same content, or their embeddings are not of one space."""
    if len({engine.modality for engine in engines}) < len(engines) or len({engine.dim for engine in engines}) > 1:
        what = ' and '.join(f'{engine.modality} to {engine.dim} dimensions' for engine in engines)
        raise ValueError(f'the models cannot be served together, which take {what}: set select_model to one of them')


class Router:
    """Serves one model, or the two of CLIP: texts go to one and images to the other.

    :param servers: of the models; see `check_together`.
    :param admission: theirs.
    """

    def __init__(self, servers: Sequence[ModelServer], admission: Admission):
        self.servers: dict[Modality, ModelServer] = {server.engine.modality: server for server in servers}
        self._admission = admission
        self.dim = servers[0].engine.dim

    @property
    def items(self) -> int:
        """Items of all requests that are under way."""
        return self._admission.items

    @property
    def waiting(self) -> int:
        """Those of them that are prepared and wait for a model."""
        return sum(server.waiting for server in self._each())

    def admitted(self, count: int) -> AbstractContextManager[None]:
        """Within, `count` items of a request count as under way, and no model is closed.

        :raises BusyError: there is no room for them.
        """
        return self._admission.admitted(count)

    def of_texts(self) -> ModelServer:
        """:raises DataError: no model takes texts."""
        if 'text' not in self.servers:
            raise DataError(f'this model does not take texts: its modality is {", ".join(self.servers)}')
        return self.servers['text']

    def contents(
        self, documents: Sequence[Content], failed: dict[int, str] | None = None
    ) -> dict[ModelServer, dict[int, Any]]:
        """What of each document is to be encoded, by the model that takes it and the document's position.

        :param failed: takes what is wrong with documents that have nothing to encode, by position.
        :raises DataError: one has nothing to encode, and `failed` is None.
        """
        found: dict[ModelServer, dict[int, Any]] = {}
        for position, document in enumerate(documents):
            try:
                server = self._of(document, position)
                content = server.engine.content(document, position)
            except DataError as error:
                if failed is None:
                    raise
                failed[position] = str(error)
            else:
                found.setdefault(server, {})[position] = content
        return found

    def _of(self, document: Content, position: int) -> ModelServer:
        """What its `modality` says, else what it holds: a text before anything else, unless that is empty."""
        if len(self.servers) == 1:
            return next(self._each())
        if document.modality is not None:
            if document.modality not in self.servers:
                known = ', '.join(self.servers)
                raise DataError(
                    f'{name_document(position, document)} has the modality {document.modality!r}: it is one of {known}'
                )
            return self.servers[document.modality]
        has_other = any(part is not None for part in (document.blob, document.tensor, document.uri))
        if document.text or (document.text is not None and not has_other):
            return self.servers['text']
        if has_other:
            return next(server for modality, server in self.servers.items() if modality != 'text')
        raise DataError(f'{name_document(position, document)} has nothing to encode: set text, blob, tensor or uri')

    def warm_up(self) -> None:
        """Compute before anyone waits for it, see :meth:`ModelServer.warm_up`."""
        for server in self._each():
            server.warm_up()

    def check(self) -> None:
        """:raises EngineError: a model does not answer any more."""
        for server in self._each():
            server.check()

    def close(self, patience: float = 0.0) -> None:
        """End what is under way, see :meth:`ModelServer.close`."""
        deadline = time.monotonic() + patience
        for server in self._each():
            server.close(deadline - time.monotonic())

    def _each(self) -> Iterator[ModelServer]:
        return iter(self.servers.values())
