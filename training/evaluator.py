"""The model's retrieval quality before and after: metrics, and what some queries find."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from finetuner.inference.text_encoder import TextEncoder
from training.config import EvaluationOptions
from training.data import TokenisedTexts
from training.embed import embed_all
from training.evaluation import evaluate, search
from training.progress import Reporter

logger = logging.getLogger(__name__)

EXAMPLE_QUERIES = 20

Metrics = dict[str, float]
Examples = dict[str, list[str]]


class Evaluator:
    """Call it for the metrics and the examples of the encoder as it is at that time.

    :param query: what is searched for.
    :param index: what is searched; it may be `query` itself.
    :param directory: for embeddings that are too many to hold in memory.
    :raises ValueError: there is nothing to find.
    """

    def __init__(
        self,
        options: EvaluationOptions,
        query: TokenisedTexts,
        index: TokenisedTexts,
        directory: Path,
        device: torch.device,
        report: Reporter,
    ):
        self.options, self.query, self.index = options, query, index
        self.directory, self.device, self.report = directory, device, report
        self.exclude_self = options.exclude_self and index is query
        if len(index) <= self.exclude_self:
            raise ValueError(f'{index.name} has one document only: there is nothing to find for it')
        self.query_labels = query.labels_as(index.classes)
        alone = int((self.query_labels >= len(index.classes)).sum())
        if alone:
            logger.warning('%d of %d queries have a label that %s lacks: they count 0', alone, len(query), index.name)

    def __call__(self, encoder: TextEncoder) -> tuple[Metrics, Examples]:
        query = self._embed(encoder, self.query, 'query')
        index = query if self.index is self.query else self._embed(encoder, self.index, 'index')
        metrics = evaluate(
            query,
            self.query_labels,
            index,
            self.index.labels,
            limit=self.options.limit,
            distance=self.options.distance,
            exclude_self=self.exclude_self,
            device=self.device,
        )
        return metrics, self._examples(query, index) if self.options.gather_examples else {}

    def _embed(self, encoder: TextEncoder, texts: TokenisedTexts, role: str) -> np.ndarray:
        file, stage = self.directory / f'{role}.f32', f'Embedding {texts.name}'
        return embed_all(encoder, texts.tokens, encoder.dim, self.device, report=self.report, stage=stage, file=file)

    def _examples(self, query: np.ndarray, index: np.ndarray) -> Examples:
        """The nearest matches of some queries, evenly spread over the data set."""
        rows = np.unique(np.linspace(0, len(query) - 1, EXAMPLE_QUERIES).astype(np.int64))
        exclude = rows if self.exclude_self else None
        found = search(query[rows], index, self.options.limit, distance=self.options.distance, exclude=exclude)
        texts = self.query.texts(rows)
        return {text: self.index.texts(matches) for text, matches in zip(texts, found, strict=True)}
