"""What `fit` can be asked to do beside training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from finetuner.documents import Content


@dataclass
class EvaluationCallback:
    """Measures retrieval before and after the training: precision, recall, F1, hit, average precision, reciprocal rank,
    DCG and nDCG at `limit`. A match is relevant if it carries the label of the query.

    :param query_data: the queries, labelled: a CSV file, documents, or the name of an ingested data set.
    :param index_data: what is searched, of the same kinds; None searches the queries.
    :param batch_size: of the encoding.
    :param exclude_self: where a query is itself in the index, it is no match of its own.
    :param limit: how many matches of each query count.
    :param distance: 'cosine', 'euclidean' or 'sqeuclidean'.
    :param gather_examples: keep matches before and after, for `Run.example_results`.
    """

    query_data: str | Path | TextIO | Iterable[Content]
    index_data: str | Path | TextIO | Iterable[Content] | None = None
    batch_size: int = 8
    exclude_self: bool = True
    limit: int = 20
    distance: str = 'cosine'
    gather_examples: bool = False
