"""DatasetExecutor: takes training data in, and tells what there is."""

from collections.abc import Sequence
from typing import Any

from jina import Executor, requests

from executors.answers import answer, answer_page, describe_dataset, describe_part, describe_usage
from executors.endpoints import unknown_endpoint
from executors.lifetime import end_with_parent
from executors.parameters import (
    DatasetParameters,
    IngestParameters,
    PageParameters,
    PartsParameters,
    TokenParameters,
)
from executors.sources import allowed_roots, allowed_schemes, read_uri
from finetuner.data import make_options
from finetuner.documents import DocumentArray
from finetuner.excepts import DataError
from registry import Registry


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
        end_with_parent()
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

    @requests(on='/usage')
    def usage(self, docs: DocumentArray, parameters: TokenParameters, **kwargs: Any) -> DocumentArray:
        """What the account has of data sets, artifacts, checkpoints and runs, and what it may have."""
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_usage(self.registry.usage(account.id)))

    @requests
    def unknown(self, docs: DocumentArray, **kwargs: Any) -> DocumentArray:
        raise unknown_endpoint(self)
