"""Training data of clicks, in the shapes that the losses learn from.

A click is a positive and a result without one a negative of the same query. A click counts as the inverse of how likely
its position is looked at, so that what was shown at the top does not win for that alone; a triplet as much as the less
sure of its two results. Weights have a mean of 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from finetuner.documents import LABEL, SCORE, Content, Contents, Document
from finetuner.excepts import DataError
from training.clicks.confidence import windowed_confidences
from training.clicks.feedback import Feedback
from training.clicks.options import ClickOptions
from training.clicks.position_bias import estimate_propensities, power_law
from training.losses.objective import Shape

Items = Mapping[str, str | Path]
"""What is in each item, by its object id: a text, or the file of an image."""


class Triplet(NamedTuple):
    query: str
    positive: str
    negative: str
    weight: float


@dataclass(eq=False)
class Judged:
    """Sessions with what each of their results is worth.

    :param sessions: of these items alone whose content is there.
    :param confidences: of every result, one array for every session.
    :param propensities: of the positions, from the first on.
    :param missing: object ids whose content is not there.
    """

    sessions: list[Feedback]
    confidences: list[np.ndarray]
    propensities: np.ndarray
    missing: set[str] = field(default_factory=set)

    def gains(self, max_weight: float) -> list[np.ndarray]:
        """What a click on each result is worth: its weight over the propensity of its position, 0 without one."""
        return [entry.clicks * self.inverse(entry.positions, max_weight) for entry in self.sessions]

    def inverse(self, positions: np.ndarray, max_weight: float) -> np.ndarray:
        """The inverse propensity of positions; those beyond the last that is known are as that one."""
        known = self.propensities[np.minimum(positions, len(self.propensities) - 1)]
        return np.minimum(1 / known, max_weight)


def judge(
    feedback: Sequence[Feedback],
    options: ClickOptions,
    items: Items | None = None,
    propensities: np.ndarray | None = None,
) -> Judged:
    """What the results of sessions are worth.

    :param items: results that are not in here are left out, and sessions with fewer than two left; None keeps all.
    :param propensities: of the positions, such as those of the sessions that are trained on; None as the options say.
    """
    if propensities is None:
        propensities = find_propensities(feedback, options)
    missing = set() if items is None else {item for entry in feedback for item in entry.items} - items.keys()
    sessions, confidences = [], []
    for entry in feedback:
        # a confidence is by all that was shown
        sure = _confidences(entry, options)
        kept = np.array([item not in missing for item in entry.items])
        if kept.sum() < 2:
            continue
        sessions.append(entry if kept.all() else _only(entry, kept))
        confidences.append(sure[kept])
    return Judged(sessions, confidences, propensities, missing)


def find_propensities(feedback: Sequence[Feedback], options: ClickOptions) -> np.ndarray:
    """How likely each position is looked at, from the first on, float64."""
    if not isinstance(options.position_bias, str):
        return np.array(options.position_bias)
    if options.position_bias == 'estimated':
        return estimate_propensities(feedback, options.eta)
    length = 1 + max((int(entry.positions.max()) for entry in feedback), default=0)
    return power_law(length, options.eta if options.position_bias == 'power' else 0.0)


def make_triplets(judged: Judged, options: ClickOptions, seed: int = 0) -> list[Triplet]:
    """Every clicked result with results without a click, and, of a session that is marked irrelevant, all that it
    showed with what was clicked for the same query in others.

    :raises DataError: there are none.
    """
    random = np.random.default_rng((seed, 7))
    elsewhere: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for entry, sure, gain in zip(judged.sessions, judged.confidences, judged.gains(options.max_weight), strict=True):
        for place in np.flatnonzero(gain):
            known = elsewhere[entry.key]
            known[entry.items[place]] = max(known.get(entry.items[place], 0.0), float(gain[place] * sure[place]))
    triplets = []
    for entry, sure, gain in zip(judged.sessions, judged.confidences, judged.gains(options.max_weight), strict=True):
        negatives = _drawn(np.flatnonzero(entry.clicks == 0), options.negative_downsampling, random)
        if entry.is_irrelevant:
            shown = set(entry.items)
            triplets += [
                Triplet(entry.query, item, entry.items[n], weight * float(sure[n]))
                for item, weight in elsewhere[entry.key].items()
                if item not in shown
                for n in negatives
            ]
            continue
        triplets += [
            Triplet(entry.query, entry.items[p], entry.items[n], float(gain[p] * min(sure[p], sure[n])))
            for p in np.flatnonzero(gain)
            for n in negatives
        ]
    triplets = [triplet for triplet in triplets if triplet.weight > 0]
    if not triplets:
        raise DataError(
            f'{len(judged.sessions)} sessions give nothing to learn from: none has a clicked result beside another '
            'without a click'
        )
    mean = sum(triplet.weight for triplet in triplets) / len(triplets)
    return [triplet._replace(weight=triplet.weight / mean) for triplet in triplets]


def triplet_documents(triplets: Sequence[Triplet], items: Items) -> Iterator[Document]:
    """Query, clicked and not clicked, with the weight as the score."""
    for query, positive, negative, weight in triplets:
        contents = [Content(text=query), content(items[positive]), content(items[negative])]
        yield Document(chunks=Contents(contents), tags={SCORE: weight})


def pair_documents(judged: Judged, items: Items) -> Iterator[Document]:
    """Query and clicked, each pair once, labelled by the query: what else was clicked for it is no negative."""
    seen = set()
    for entry in judged.sessions:
        for place in np.flatnonzero(entry.clicks):
            pair = entry.key, entry.items[place]
            if pair not in seen:
                seen.add(pair)
                contents = [Content(text=entry.query), content(items[entry.items[place]])]
                yield Document(chunks=Contents(contents), tags={LABEL: entry.key})


def scored_pair_documents(judged: Judged, options: ClickOptions, items: Items) -> Iterator[Document]:
    """Query and result with how attractive it is, 0 to 1: the clicks that it had over the views that it would have had
    by the propensities of its positions, and one more view that was as good as the mean."""
    clicks: defaultdict[tuple[str, str], float] = defaultdict(float)
    views: defaultdict[tuple[str, str], float] = defaultdict(float)
    queries: dict[str, str] = {}
    for entry in judged.sessions:
        queries.setdefault(entry.key, entry.query)
        looks = 1 / judged.inverse(entry.positions, options.max_weight)
        for item, click, look in zip(entry.items, entry.clicks, looks, strict=True):
            clicks[entry.key, item] += float(click > 0)
            views[entry.key, item] += float(look)
    mean = sum(clicks.values()) / max(sum(views.values()), 1e-12)
    for (key, item), seen in views.items():
        score = min(1.0, (clicks[key, item] + mean) / (seen + 1))
        contents = [Content(text=queries[key]), content(items[item])]
        yield Document(chunks=Contents(contents), tags={SCORE: score})


def training_documents(
    judged: Judged, options: ClickOptions, items: Items, shape: Shape, seed: int = 0
) -> Iterator[Document]:
    """The documents that a loss of this shape learns from.

    :raises DataError: there are none.
    """
    if shape == 'triplets':
        return triplet_documents(make_triplets(judged, options, seed), items)
    if not any(entry.clicks.any() for entry in judged.sessions):
        raise DataError(f'{len(judged.sessions)} sessions give nothing to learn from: none has a click')
    return scored_pair_documents(judged, options, items) if shape == 'scored pairs' else pair_documents(judged, items)


def content(item: str | Path) -> Content:
    """A text as it is, and an image by the file that it is in."""
    return Content(uri=str(item), modality='image') if isinstance(item, Path) else Content(text=item)


def _confidences(entry: Feedback, options: ClickOptions) -> np.ndarray:
    if options.confidence == 'none':
        return np.ones(len(entry.items))
    # where the search did not tell, its results are taken to be alike
    ranks = np.ones(len(entry.items)) if np.isnan(entry.ranks).any() else entry.ranks
    return windowed_confidences(ranks, entry.clicks, options.window)


def _only(entry: Feedback, kept: np.ndarray) -> Feedback:
    items = [item for item, keep in zip(entry.items, kept, strict=True) if keep]
    parts = entry.positions[kept], entry.clicks[kept], entry.ranks[kept]
    return Feedback(entry.session_id, entry.query, items, *parts, entry.is_irrelevant)


def _drawn(places: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    if share == 1 or not len(places):
        return places
    return np.sort(random.choice(places, max(1, int(share * len(places))), replace=False))
