from __future__ import annotations

import numpy as np
import pytest

from training.clicks.significance import bootstrap_interval, compare


def test_the_interval_of_a_mean_is_the_known_one():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    wide = bootstrap_interval(values, confidence=0.99)
    assert wide.low < found.low and wide.high > found.high
    assert bootstrap_interval(values) == found and bootstrap_interval(values, seed=1) != found
    assert str(bootstrap_interval(np.array([0.5, 0.5]))) == '0.5000 [0.5000, 0.5000]'


def test_sessions_of_one_query_are_no_independent_witnesses():
    """Ten queries with forty equal sessions each say as much as ten sessions."""
    values = np.random.default_rng(0).normal(0, 1, 10)
    groups = np.repeat(np.arange(10), 40)
    few, many = bootstrap_interval(values), bootstrap_interval(np.repeat(values, 40), groups)
    assert (many.low, many.high) == pytest.approx((few.low, few.high))
    blind = bootstrap_interval(np.repeat(values, 40))
    assert blind.high - blind.low < (few.high - few.low) / 4


def test_a_session_that_weighs_twice_is_one_that_is_there_twice():
    values, groups, weights = np.array([0.1, 0.5, 0.9, 0.4]), ['a', 'a', 'b', 'c'], np.array([1, 3, 2, 1])
    twice = bootstrap_interval(np.repeat(values, weights), list(np.repeat(groups, weights)))
    assert bootstrap_interval(values, groups, weights=weights) == twice
    found = compare(values, values[::-1], groups, weights=weights)
    again = compare(np.repeat(values, weights), np.repeat(values[::-1], weights), list(np.repeat(groups, weights)))
    assert found.difference.mean == pytest.approx(again.difference.mean) and found.p_value == again.p_value


def test_a_gain_beyond_noise_is_seen_and_noise_is_not():
    random = np.random.default_rng(0)
    before = random.uniform(0, 1, 200)
    gain = compare(before, before + random.normal(0.05, 0.1, 200))
    assert gain.is_better and gain.difference.low > 0 and gain.significance == 'p < 0.001'
    assert gain.after.mean - gain.before.mean == pytest.approx(gain.difference.mean)
    loss = compare(before + 0.1, before + random.normal(0, 0.01, 200))
    assert not loss.is_better and loss.p_value < 0.01 and loss.difference.high < 0
    same = compare(before, before)
    assert not same.is_better and same.significance == 'p = 1.000'


def test_the_test_errs_as_seldom_as_it_says():
    random, wrong = np.random.default_rng(0), 0
    for seed in range(200):
        differences = random.normal(0, 1, 40)
        found = compare(np.zeros(40), differences, samples=300, seed=seed)
        wrong += found.p_value < 0.05
    assert 2 <= wrong <= 20


def test_groups_decide_the_test_too():
    """One query that gained, with very many sessions, is one query that gained."""
    groups = [0] * 100 + [1, 2, 3]
    found = compare(np.zeros(103), np.array([0.5] * 100 + [-0.1, 0.1, -0.1]), groups)
    assert not found.is_better and found.p_value > 0.1
    assert compare(np.zeros(103), np.array([0.5] * 100 + [-0.1, 0.1, -0.1])).is_better


def test_nothing_cannot_be_compared():
    with pytest.raises(ValueError, match='There are no sessions to measure on'):
        compare(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match='2 sessions before and 3 after: the same ones are needed'):
        compare(np.zeros(2), np.zeros(3))
