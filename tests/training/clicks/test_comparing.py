"""Whether the verdict over clicks is that of what users want, although they look at the top first."""

from __future__ import annotations

import numpy as np
import pytest

from examples.clicks.shop import Shop
from training.clicks.comparing import Embedded, judge_model
from training.clicks.examples import judge
from training.clicks.options import ClickOptions

OPTIONS = ClickOptions()


def ranked_by(shop: Shop, scores) -> Embedded:
    """A model whose cosines order the products of the shop as these scores do."""
    items = dict(zip(shop.titles, np.eye(len(shop.products)), strict=True))
    return Embedded({query.text: np.asarray(scores(query)) for query in shop.queries}, items)


@pytest.fixture(scope='module')
def shown(shop) -> dict[str, np.ndarray]:
    """A search that is right more often than not."""
    random = np.random.default_rng(0)
    return {query.text: shop.relevance(query) + random.normal(1, 0.4, len(shop.products)) for query in shop.queries}


@pytest.fixture
def verdict(shop, simulate, shown):
    """The verdict on another model than the one whose order was shown, by so many sessions."""

    def give(scores, sessions, seed=0, **behaviour):
        found = simulate(sessions, lambda query: shown[query.text], seed=seed, **behaviour)
        before = ranked_by(shop, lambda query: shown[query.text])
        return judge_model(judge(found, OPTIONS), before, ranked_by(shop, scores))

    return give


def test_the_gain_is_that_of_users_who_look_at_everything(verdict, shop):
    biased = verdict(shop.relevance, 1500).metrics['ndcg_at_10'].difference
    unbiased = verdict(shop.relevance, 1500, eta=0.0).metrics['ndcg_at_10'].difference
    assert unbiased.mean > 0.05
    assert biased.mean == pytest.approx(unbiased.mean, rel=0.35)


@pytest.mark.parametrize(('sessions', 'is_few'), [(9, True), (300, False)])
def test_a_refusal_by_few_sessions_says_so(verdict, sessions, is_few, shown):
    found = verdict(lambda query: shown[query.text], sessions)
    assert 'that is not better beyond noise' in found.refusal
    assert found.refusal.endswith('so few sessions can hardly show it if it is') is is_few


def test_clicks_that_tell_of_positions_alone_prefer_no_model(verdict, shop):
    """A model that orders at will is as good as the one whose order was shown: nobody looks for anything."""
    random = np.random.default_rng(1)
    other = {query.text: random.uniform(0, 1, len(shop.products)) for query in shop.queries}
    found = verdict(lambda query: other[query.text], 2000, at_random=True)
    assert abs(found.metrics['ndcg_at_10'].difference.mean) < 0.05


def test_noise_promotes_as_seldom_as_it_says(verdict, shop):
    promoted = 0
    for seed in range(10):
        random = np.random.default_rng(100 + seed)
        other = {query.text: random.uniform(0, 1, len(shop.products)) for query in shop.queries}
        found = verdict(lambda query, other=other: other[query.text], 200, seed=seed, at_random=True)
        promoted += found.refusal is None
    assert promoted <= 1
