from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from tests.training.clicks.conftest import feedback, session
from training.clicks.ranking import distance_shifts, ndcg, ranking_metrics, recall, reciprocal_rank, session_scores


@pytest.mark.parametrize('k', [1, 3, 10])
@pytest.mark.parametrize('levels', [3, 1000])
def test_ndcg_is_that_of_scikit_learn(k, levels):
    random = np.random.default_rng(k * levels)
    for _ in range(50):
        size = random.integers(2, 15)
        scores, gains = random.integers(0, levels, size) / 7, random.integers(0, 4, size).astype(float)
        assert ndcg(scores, gains, k) == pytest.approx(ndcg_score([gains], [scores], k=k))


@pytest.mark.parametrize(('metric', 'plain'), [
    (reciprocal_rank, lambda gains: 1 / (1 + next(place for place, gain in enumerate(gains) if gain))),
    (lambda scores, gains: recall(scores, gains, 2), lambda gains: sum(gains[:2]) / sum(gains)),
])  # fmt: skip
def test_ties_count_as_the_mean_of_all_orders(metric, plain):
    random = np.random.default_rng(0)
    for _ in range(40):
        scores, gains = random.integers(0, 3, 5).astype(float), random.integers(0, 2, 5).astype(float)
        if not gains.any():
            assert metric(scores, gains) == 0
            continue
        orders = [
            plain([gains[place] for place in order])
            for order in permutations(range(5))
            if all(scores[one] >= scores[other] for one, other in zip(order, order[1:], strict=False))
        ]
        assert metric(scores, gains) == pytest.approx(np.mean(orders))


def test_a_model_that_tells_nothing_apart_gains_nothing_from_the_order_shown():
    gains = np.array([1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    chance = np.mean([1 / np.log2(place + 2) for place in range(10)])
    assert ndcg(np.ones(10), gains) == pytest.approx(chance)
    assert reciprocal_rank(np.ones(10), gains) == pytest.approx(np.mean([1 / place for place in range(1, 11)]))


def test_metrics_of_sessions():
    scores = [np.array([3.0, 2, 1]), np.array([1.0, 2, 3])]
    gains = [np.array([1.0, 0, 0]), np.array([1.0, 0, 0])]
    found = ranking_metrics(scores, gains, 2)
    assert found['ndcg_at_2'].tolist() == [1, 0]
    assert found['reciprocal_rank'] == pytest.approx([1, 1 / 3])
    assert found['recall_at_2'].tolist() == [1, 0]


def test_scores_are_cosines():
    entries = feedback(session('q', 'ab', 'a'), session('r', 'b'))
    queries = {'q': np.array([2.0, 0]), 'r': np.array([0.0, 0])}
    items = {'a': np.array([3.0, 3.0]), 'b': np.array([-1.0, 0])}
    scores = session_scores(entries, queries, items)
    assert scores[0] == pytest.approx([0.5**0.5, -1]) and scores[1].tolist() == [0]


def test_a_collapsed_model_has_the_best_shift_and_no_better_ranking():
    """Why the shift of distances is told, and nothing goes by it."""
    random = np.random.default_rng(0)
    entries = feedback(
        *(session(f'q{number}', [f'{number}-{place}' for place in range(8)], [f'{number}-{place}' for place in (2, 5)])
          for number in range(60)),
        session('nothing', ['0-0', '0-1'], irrelevant=True),
    )  # fmt: skip
    before = [random.uniform(-0.5, 0.5, len(entry.items)) for entry in entries]
    collapsed = [np.ones(len(entry.items)) for entry in entries]
    better = [old + 0.4 * (entry.clicks > 0) for old, entry in zip(before, entries, strict=True)]
    shifts = {name: distance_shifts(entries, before, after) for name, after in (('c', collapsed), ('b', better))}
    assert shifts['c']['not_irrelevant_dist_shift'] > shifts['b']['not_irrelevant_dist_shift'] == pytest.approx(0.4)
    assert shifts['b']['irrelevant_dist_shift'] == 0 > shifts['c']['irrelevant_dist_shift']
    gains = [entry.clicks for entry in entries[:-1]]
    quality = {
        name: ranking_metrics(scores[:-1], gains)['ndcg_at_10'].mean()
        for name, scores in (('before', before), ('collapsed', collapsed), ('better', better))
    }
    assert quality['better'] > quality['before'] + 0.15 and abs(quality['collapsed'] - quality['before']) < 0.05
