"""Retrieval quality of the encoders as they are: metrics, and what some queries find."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from finetuner.inference.encoder import Encoder
from training.callbacks.options import EvaluationOptions
from training.data import Column, Examples
from training.embed import Embedder, embed_all
from training.evaluation import retrieval_metrics, search
from training.progress import Reporter
from training.task import Task

if TYPE_CHECKING:
    from training.config import FitConfig

logger = logging.getLogger(__name__)

EXAMPLE_QUERIES = 20
VECTORS_AT_ONCE = 512  # for each item that is embedded at once where items are large

Metrics = dict[str, float]
Matches = dict[str, list[str]]
Relevance = dict[str, list[bool]]


@dataclass
class Evaluation:
    """What came of one evaluation.

    :param metrics: by name.
    :param examples: the nearest matches of some queries, nearest first.
    :param relevance: whether each of these matches is relevant.
    """

    metrics: Metrics = field(default_factory=dict)
    examples: Matches = field(default_factory=dict)
    relevance: Relevance = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Side:
    """The items that search, or those that are searched.

    :param column: of the examples.
    :param rows: of the examples, int64 [N].
    :param labels: of the items, int [N]; None if there are none.
    :param embedder: of all items of the encoder.
    """

    examples: Examples
    column: int
    rows: np.ndarray
    labels: np.ndarray | None
    embedder: Embedder

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def source(self) -> Column:
        return self.examples.columns[self.column]

    def titles(self, rows: np.ndarray) -> list[str]:
        return self.examples.titles(self.rows[rows], self.column)


class Corpora:
    """The embeddings of sides, each computed once for every state of the weights however many evaluations read them.

    :param embedders: of a data set, what embeds the items of each encoder.
    :param directory: for embeddings that are too many to hold in memory.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        embedders: Callable[[Examples], Mapping[str, Embedder]],
        directory: Path,
        device: torch.device,
        report: Reporter,
    ):
        self.encoders, self.directory, self.device, self.report = encoders, directory, device, report
        self._embedders = embedders
        self._sides: dict[tuple[int, int], Side] = {}
        self._kept: dict[int, np.ndarray] = {}
        self._version: tuple[int, int] | None = None

    def side(self, examples: Examples, column: int) -> Side:
        """The items of a column: of pairs and the like each once, whereas a list of items is taken as it is."""
        key = id(examples), column
        if key not in self._sides:
            rows, labels = np.arange(len(examples)), examples.labels
            if len(examples.columns) > 1 and labels is not None:
                source = examples.columns[column]
                keys = np.asarray(source.store.keys[source.items(rows)])
                _, first = np.unique(np.stack([keys, labels.astype(np.uint64)]), axis=1, return_index=True)
                rows = np.sort(first)
                labels = labels[rows]
            embedder = self._embedders(examples)[examples.columns[column].encoder]
            self._sides[key] = Side(examples, column, rows, labels, embedder)
        return self._sides[key]

    def embeddings(self, side: Side, task: Task, version: int, batch_size: int) -> np.ndarray:
        """Of all items, float32 [N, D], perhaps memory-mapped.

        :param version: another number for other weights; weights that were changed in place are noticed beside it.
        """
        current = version, sum(tensor._version for tensor in (*task.parameters(), *task.buffers()))
        if current != self._version:
            self._kept, self._version = {}, current
        if id(side) not in self._kept:
            source = side.source
            encoder = self.encoders[source.encoder]
            number = list(self._sides.values()).index(side)
            self._kept[id(side)] = embed_all(
                side.embedder,
                encoder,
                source.items(side.rows),
                self.device,
                report=self.report,
                stage=f'Embedding {side.examples.name}',
                file=self.directory / f'side-{number}.f32',
                budget=batch_size * item_size(encoder),
            )
        return self._kept[id(side)]


def item_size(encoder: Encoder) -> int:
    """What an item of full length costs: texts count by their tokens, and vectors are small."""
    if encoder.modality == 'text':
        return int(getattr(encoder, 'max_length', None) or VECTORS_AT_ONCE)
    return VECTORS_AT_ONCE if encoder.modality == 'tensor' else 1


def make_evaluators(config: FitConfig, examples_of: Callable[[str], Examples], corpora: Corpora) -> list[Evaluator]:
    """One for every EvaluationCallback, in their order.

    Without `callbacks`, labelled `eval_data` search the training data, and the first items of pairs the second.
    """
    wanted = config.evaluations
    if config.callbacks is None and config.eval_data is not None:
        held_out = examples_of(config.eval_data)
        if held_out.labels is not None:
            searched = config.train_data if held_out.classes and examples_of(config.train_data).classes else None
            wanted = [EvaluationOptions(query_data=config.eval_data, index_data=searched, gather_examples=True)]
    evaluators = []
    for options in wanted:
        query = examples_of(options.query_data)
        index = query if options.index_data is None else examples_of(options.index_data)
        evaluators.append(Evaluator(options, query, index, corpora))
    return evaluators


class Evaluator:
    """Call it for the metrics and the examples of the encoders as they are at that time.

    :param query: labelled items; or pairs, whose first column searches the second.
    :param index: what is searched; it may be `query` itself.
    :param corpora: shared by all evaluators of a run.
    :raises ValueError: there is nothing to find, or no way to tell what is relevant.
    """

    def __init__(self, options: EvaluationOptions, query: Examples, index: Examples, corpora: Corpora):
        self.options, self.corpora = options, corpora
        asking = choose_column(query, options.model, corpora.encoders, avoid=None)
        answering = choose_column(
            index, options.index_model, corpora.encoders, avoid=asking if index is query else 0, option='index_model'
        )
        self.query, self.index = corpora.side(query, asking), corpora.side(index, answering)
        self.exclude_self = options.exclude_self and self.index is self.query
        if len(self.index) <= self.exclude_self:
            raise ValueError(f'{index.name} has one item only: there is nothing to find for it')
        self.query_labels, self.index_labels = _labels(self.query, self.index)
        alone = int((~np.isin(self.query_labels, self.index_labels)).sum())
        if alone:
            logger.warning('%d of %d queries have a label that %s lacks: they count 0', alone, len(query), index.name)

    @property
    def prefix(self) -> str:
        """What the names of the metrics begin with: which encoder searches among what which has encoded."""
        if len(self.corpora.encoders) == 1:
            return ''
        return f'{self.query.source.encoder}-to-{self.index.source.encoder}_'

    def __call__(self, task: Task, version: int = 0, examples: bool = True) -> Evaluation:
        """
        :param version: another number for other weights.
        :param examples: gather them, if the options say so.
        """
        options = self.options
        query, index = (
            self.corpora.embeddings(side, task, version, options.batch_size) for side in (self.query, self.index)
        )
        exclude = np.arange(len(query)) if self.exclude_self else None
        device = self.corpora.device
        found = search(query, index, options.limit, distance=options.distance, exclude=exclude, device=device)
        relevant = self.index_labels[found] == self.query_labels[:, None]
        classes = max(int(self.query_labels.max()), int(self.index_labels.max())) + 1
        total = np.bincount(self.index_labels, minlength=classes)[self.query_labels] - self.exclude_self
        evaluation = Evaluation(retrieval_metrics(relevant, total))
        if examples and options.gather_examples:
            self._add_examples(evaluation, found, relevant)
        return evaluation

    def _add_examples(self, evaluation: Evaluation, found: np.ndarray, relevant: np.ndarray) -> None:
        """The nearest matches of some queries, evenly spread over the data set."""
        rows = np.unique(np.linspace(0, len(found) - 1, EXAMPLE_QUERIES).astype(np.int64))
        for row, title in zip(rows, self.query.titles(rows), strict=True):
            evaluation.examples[title] = self.index.titles(found[row])
            evaluation.relevance[title] = relevant[row].tolist()


def choose_column(
    examples: Examples,
    encoder: str | None,
    encoders: Mapping[str, Encoder],
    *,
    avoid: int | None,
    option: str = 'model',
) -> int:
    """The column that an encoder reads.

    :param encoder: its name, None for any.
    :param avoid: a column that is taken only if there is no other.
    :raises ValueError: there is no such encoder, or it reads nothing of the data.
    """
    if encoder is not None and encoder not in encoders:
        raise ValueError(f'EvaluationCallback: {option}={encoder!r}, but this model has {", ".join(encoders)}')
    columns = [
        number for number, column in enumerate(examples.columns[:2]) if encoder is None or column.encoder == encoder
    ]
    if not columns:
        raise ValueError(f'EvaluationCallback: {examples.name} holds nothing that {encoder} reads')
    return next((number for number in columns if number != avoid), columns[0])


def _labels(query: Side, index: Side) -> tuple[np.ndarray, np.ndarray]:
    """Those of both sides, in one numbering."""
    for side in (query, index):
        if side.labels is None:
            raise ValueError(f'{side.examples.name} has no labels to tell which matches are right')
    assert query.labels is not None and index.labels is not None
    if index.examples is query.examples:
        return query.labels, index.labels
    if not query.examples.classes or not index.examples.classes:
        missing = index.examples.name if query.examples.classes else query.examples.name
        raise ValueError(
            f'{missing} has no labels to tell which matches are right: give them, or pairs as query_data alone'
        )
    numbers = {label: number for number, label in enumerate(index.examples.classes)}
    renumbered = np.array([numbers.setdefault(label, len(numbers)) for label in query.examples.classes], np.int32)
    return renumbered[query.labels], index.labels
