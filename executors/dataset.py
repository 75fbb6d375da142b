"""DatasetExecutor: takes training data in."""

from collections.abc import Sequence
from typing import Any

from jina import Executor, requests

from executors.answers import answer
from executors.drain import drain_at_shutdown
from executors.endpoints import unknown_endpoint
from executors.lifetime import end_with_parent
from executors.parameters import IngestParameters
from executors.sources import allowed_roots, allowed_schemes, read_uri
from finetuner.data import make_options
from finetuner.documents import DocumentArray
from finetuner.excepts import DataError
from registry import Registry


class DatasetExecutor(Executor):
    """Appends documents to named data sets. Its endpoint needs a token.

    :param ingest_roots: folders whose files clients may name by URI, default `FINETUNER_INGEST_ROOTS` (separated by
        ':') or none.
    :param ingest_schemes: schemes of the URIs that may be read, default `FINETUNER_INGEST_SCHEMES` (separated by
        commas) or 'file'.
    """

    def __init__(
        self, ingest_roots: Sequence[str] | None = None, ingest_schemes: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        end_with_parent()
        drain_at_shutdown()
        self.roots = allowed_roots(ingest_roots)
        self.schemes = allowed_schemes(ingest_schemes)
        self.registry = Registry.open()

    def close(self) -> None:
        self.registry.close()

    @requests(on='/ingest')
    def ingest(self, docs: DocumentArray, parameters: IngestParameters, **kwargs: Any) -> DocumentArray:
        """Append the documents of the request, or of the file at `uri`, to the data set `name`: all or none."""
        account = self.registry.authenticate(parameters.secret)
        if (parameters.uri is None) == (len(docs) == 0):
            raise DataError('send documents, or the uri of a file: one of the two')
        documents: Any = docs
        if parameters.uri is not None:
            documents = read_uri(parameters.uri, make_options(parameters.csv_options), self.roots, self.schemes)
        dataset = self.registry.append_documents(account.id, parameters.name, documents, parameters.part)
        return answer(
            name=dataset.name,
            rows=dataset.rows,
            size=dataset.size,
            digest=dataset.digest,
            shape=dataset.shape,
            modalities=list(dataset.modalities),
            labelled=dataset.labelled,
            scored=dataset.scored,
        )

    @requests
    def unknown(self, docs: DocumentArray, **kwargs: Any) -> DocumentArray:
        raise unknown_endpoint(self)
