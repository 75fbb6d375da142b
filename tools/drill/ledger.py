"""What the service has accepted, written down by those who asked for it."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Ledger:
    """The books of one account. Threads share it.

    :param parts: the data sets that were taken in: {name: {part: number of documents}}.
    :param runs: the runs that were accepted: {name: id}.
    :param answers: what `/encode` has answered: {artifact id: embeddings of the probes, [probes, dimensions]}.
    :param promoted: the artifact that the last accepted promotion named.
    :param wrong: answers that were not right, in a sentence each.
    :param counts: of calls: accepted, and refused with an error that the caller saw.
    """

    account: str
    token: str
    parts: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    runs: dict[str, str] = field(default_factory=dict)
    answers: dict[str, np.ndarray] = field(default_factory=dict)
    promoted: str | None = None
    wrong: list[str] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, call: str, outcome: str) -> None:
        with self.lock:
            self.counts[call, outcome] += 1

    def note(self, sentence: str) -> None:
        with self.lock:
            self.wrong.append(f'{self.account}: {sentence}')

    def check_embeddings(self, artifact_id: str, embeddings: np.ndarray) -> None:
        """Every answer of an artifact is the same, up to rounding."""
        with self.lock:
            first = self.answers.setdefault(artifact_id, embeddings)
        if first.shape != embeddings.shape or not np.allclose(first, embeddings, atol=1e-4):
            self.note(f'two answers of the artifact {artifact_id} differ')


def total(ledgers: list[Ledger], call: str, outcome: str) -> int:
    return sum(ledger.counts[call, outcome] for ledger in ledgers)
