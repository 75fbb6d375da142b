"""Users of the shop: they look at the top first, click what they want and sometimes what they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from examples.clicks.shop import Query, Shop


@dataclass(frozen=True)
class Behaviour:
    """
    :param shown: results of a search.
    :param eta: position k from 1 is looked at with the chance 1 / k^eta.
    :param noise: the share of clicks on what was looked at that are by chance, whatever it is.
    :param spread: how far the search is from always giving the same order: the standard deviation of what is added to
        its scores, in standard deviations of these.
    :param flags: the chance that a user who saw nothing of use says so.
    :param at_random: click whatever is looked at with one chance: these clicks say nothing.
    """

    shown: int = 10
    eta: float = 1.0
    noise: float = 0.05
    spread: float = 0.3
    flags: float = 0.3
    at_random: bool = False


@dataclass(frozen=True)
class Visit:
    """What a front end would report: the bodies of the calls for one session.

    :param session: with `session_id`, `search_query`, `search_results`, `user_id`.
    :param events: of the session, with `event_id`, `object_id`, `event_type`.
    :param is_irrelevant: whether the user said that nothing was of use.
    """

    query: Query
    session: dict[str, Any]
    events: list[dict[str, Any]]
    is_irrelevant: bool


def visits(
    shop: Shop,
    count: int,
    search: Callable[[Query], np.ndarray] | None = None,
    behaviour: Behaviour | None = None,
    queries: Sequence[Query] | None = None,
    seed: int = 0,
) -> Iterator[Visit]:
    """So many visits; the same arguments give the same.

    :param search: the scores of all products for a query, float [products], default `Shop.word_scores`.
    :param queries: those that users search for, default all.
    """
    behaviour = behaviour or Behaviour()
    # of each query once, whoever searches for it
    search, relevance = cache(search or shop.word_scores), cache(shop.relevance)
    random = np.random.default_rng((seed, 13))
    numbers = {query: number for number, query in enumerate(shop.queries)}
    queries = list(queries or shop.queries)
    chances = shop.popularity[[numbers[query] for query in queries]]
    for number in range(count):
        query = queries[random.choice(len(queries), p=chances / chances.sum())]
        scores = np.asarray(search(query), np.float64)
        yield _visit(shop, query, scores, relevance(query), behaviour, random, f'{seed}-{number:06d}')


def _visit(
    shop: Shop,
    query: Query,
    scores: np.ndarray,
    relevance: np.ndarray,
    behaviour: Behaviour,
    random: np.random.Generator,
    name: str,
) -> Visit:
    shaken = scores + random.normal(0, max(behaviour.spread * scores.std(), 1e-9), len(scores))
    shown = np.argsort(-shaken, kind='stable')[: behaviour.shown]
    relevance = relevance[shown]
    attractive = np.full(len(shown), relevance.mean()) if behaviour.at_random else relevance
    clicked = _looked_at(len(shown), behaviour.eta, random) & (
        random.random(len(shown)) < behaviour.noise + (1 - behaviour.noise) * attractive
    )
    products = [shop.products[place] for place in shown]
    session = {
        'session_id': f'visit-{name}',
        'search_query': query.text,
        'user_id': f'user-{random.integers(200)}',
        'search_results': [
            {'object_id': found.object_id, 'rank': round(float(scores[place]), 6), 'meta': {'text': found.title}}
            for found, place in zip(products, shown, strict=True)
        ],
    }
    events = [
        {'event_id': f'event-{place}', 'object_id': products[place].object_id, 'event_type': 'click'}
        for place in np.flatnonzero(clicked)
    ]
    useless = not events and relevance.max() < 0.5
    return Visit(query, session, events, bool(useless and random.random() < behaviour.flags))


def _looked_at(count: int, eta: float, random: np.random.Generator) -> np.ndarray:
    return random.random(count) < np.arange(1, count + 1, dtype=np.float64) ** -eta
