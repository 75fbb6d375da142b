"""DatasetExecutor: takes training data in, and tells what there is."""

from collections.abc import Sequence
from typing import Any

from jina import Executor, requests

from executors.answers import answer, answer_page, describe_dataset, describe_part
from executors.endpoints import unknown_endpoint
from executors.inline import read_inline
from executors.lifetime import prepare_process
from executors.opening import open_registry
from executors.parameters import (
    DatasetParameters,
    IngestParameters,
    PageParameters,
    PartsParameters,
)
from executors.sources import allowed_roots, allowed_schemes, read_uri
from finetuner.data import make_options
from finetuner.documents import DocumentArray
from finetuner.excepts import DataError


class DatasetExecutor(Executor):
    """Appends documents to named data sets, lists and deletes them. Every endpoint needs a token.

    :param ingest_roots: folders whose files clients may name by URI, default `FINETUNER_INGEST_ROOTS` (separated by
        ':') or none.
    :param ingest_schemes: schemes of the URIs that may be read, default `FINETUNER_INGEST_SCHEMES` (separated by
        commas) or 'file'.
    """

    def __init__(
        self, ingest_roots: Sequence[str] | None = None, ingest_schemes: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        prepare_process(self)
        self.roots = allowed_roots(ingest_roots)
        self.schemes = allowed_schemes(ingest_schemes)
        self.registry = open_registry(self.logger)

    def close(self) -> None:
        self.registry.close()

    @requests(on='/ingest')
    def ingest(self, docs: DocumentArray, parameters: IngestParameters, **kwargs: Any) -> DocumentArray:
        """Append documents to the data set `name`: those of the request, of the file at `uri`, or of the file of the
        given `format` in the blob of the one document. All or none.
        """
        account = self.registry.authenticate(parameters.secret)
        if (parameters.uri is None) == (len(docs) == 0):
            raise DataError('send documents, or the uri of a file: one of the two')
        options = make_options(parameters.csv_options)
        documents: Any = docs
        if parameters.uri is not None:
            documents = read_uri(parameters.uri, options, self.roots, self.schemes)
        elif parameters.format is not None:
            documents = read_inline(docs, parameters.format, parameters.sha256, parameters.name, options)
        dataset = self.registry.append_documents(account.id, parameters.name, documents, parameters.part)
        return answer(**describe_dataset(dataset))

    @requests(on='/datasets')
    def datasets(self, docs: DocumentArray, parameters: PageParameters, **kwargs: Any) -> DocumentArray:
        """A page of data sets, the newest first."""
        account = self.registry.authenticate(parameters.secret)
        return answer_page(self.registry.list_datasets(account.id, parameters.page, parameters.size), describe_dataset)

    @requests(on='/dataset')
    def dataset(self, docs: DocumentArray, parameters: PartsParameters, **kwargs: Any) -> DocumentArray:
        """A data set, with a page of its parts in their order; `parts_total` is how many there are."""
        account = self.registry.authenticate(parameters.secret)
        found, parts = self.registry.list_shards(account.id, parameters.name, parameters.page, parameters.size)
        return answer(
            **describe_dataset(found), parts=[describe_part(part) for part in parts.items], parts_total=parts.total
        )

    @requests(on='/delete_dataset')
    def delete_dataset(self, docs: DocumentArray, parameters: DatasetParameters, **kwargs: Any) -> DocumentArray:
        """Delete a data set, and return what it was. Not while a run that waits or is at work reads it."""
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_dataset(self.registry.delete_dataset(account.id, parameters.name)))

    @requests
    def unknown(self, docs: DocumentArray, **kwargs: Any) -> DocumentArray:
        raise unknown_endpoint(self)
