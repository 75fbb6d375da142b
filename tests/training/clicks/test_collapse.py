from __future__ import annotations

import numpy as np
import pytest

from training.clicks.collapse import effective_rank, find_collapse, mean_pairwise_cosine


@pytest.fixture
def healthy():
    return np.random.default_rng(0).standard_normal((200, 16))


def test_the_mean_cosine_is_that_of_all_pairs(healthy):
    rows = healthy[:30] + 0.3
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(30) for j in range(30) if i != j]
    assert mean_pairwise_cosine(rows) == pytest.approx(np.mean(pairs))
    assert mean_pairwise_cosine(rows[:1]) == 1


def test_the_rank_is_that_of_the_space_that_is_used(healthy):
    assert effective_rank(healthy) > 14
    plane = healthy[:, :2] @ np.random.default_rng(1).standard_normal((2, 16))
    assert 1 < effective_rank(plane) <= 2.001
    assert effective_rank(np.ones((20, 16))) == 0
    corners = np.tile(np.eye(4), (10, 1))
    assert effective_rank(corners) == pytest.approx(3), 'four corners span three dimensions around their mean'


def test_a_collapse_is_told_by_its_reason(healthy):
    rng = np.random.default_rng(2)
    one_vector = np.ones((200, 16)) + 0.01 * rng.standard_normal((200, 16))
    line = rng.standard_normal((200, 1)) @ np.ones((1, 16)) + 1e-3 * rng.standard_normal((200, 16))
    assert find_collapse(healthy, one_vector).startswith(
        'the model has collapsed: the mean cosine of two items is 1.000'
    )
    assert 'dimensions, of' in find_collapse(healthy, line)
    assert find_collapse(healthy, np.full((200, 16), np.nan)) == 'the model gives embeddings that are not numbers'


def test_what_is_healthy_passes(healthy):
    rotated = healthy @ np.linalg.qr(np.random.default_rng(3).standard_normal((16, 16)))[0]
    assert find_collapse(healthy, rotated) is None
    narrow = healthy + 5  # a model may begin narrow, and need not become wider
    assert mean_pairwise_cosine(narrow) > 0.95 and find_collapse(narrow, narrow) is None
