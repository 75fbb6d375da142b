from __future__ import annotations

import numpy as np
import pytest

from tests.training.clicks.conftest import feedback, session
from training.clicks.position_bias import estimate_propensities, power_law


@pytest.mark.parametrize('eta', [0.0, 0.5, 1.5])
def test_the_bias_of_users_is_found(simulate, eta):
    found = estimate_propensities(simulate(2500, eta=eta))
    assert found[0] == 1 and (np.diff(found) <= 0).all()
    assert np.abs(found - power_law(10, eta)).max() < 0.2


def test_the_bias_is_found_where_the_search_is_good(shop, simulate):
    """The clicks fall with the position faster than users' attention does, since what is wanted is at the top."""
    sessions = simulate(4000, search=shop.relevance, eta=0.5, spread=0.5)
    clicks = np.mean([entry.clicks for entry in sessions], axis=0)
    naive = clicks / clicks[0]
    found = estimate_propensities(sessions)
    assert np.abs(naive - power_law(10, 0.5)).max() > 0.2
    assert np.abs(found - power_law(10, 0.5)).max() < 0.15


def test_random_clicks_have_a_bias_as_well(simulate):
    found = estimate_propensities(simulate(2500, at_random=True, eta=1.0))
    assert np.abs(found - power_law(10)).max() < 0.2


def test_what_was_never_shown_elsewhere_tells_nothing_and_the_log_says_so(caplog):
    sessions = feedback(*(session(f'q{number}', 'abcde', 'a') for number in range(50)))
    assert estimate_propensities(sessions, eta=0.7) == pytest.approx(power_law(5, 0.7))
    assert 'Position bias cannot be estimated: 0 items were shown at different positions' in caplog.text
    assert estimate_propensities(sessions[:0]).tolist() == [1]


def test_long_lists_are_fine(simulate):
    found = estimate_propensities(simulate(300, shown=200))
    assert len(found) == 200 and np.isfinite(found).all() and found.min() > 0
