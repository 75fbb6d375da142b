from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest

from training.evaluation import evaluate, retrieval_metrics, search


def plain_metrics(query: list[float], label: str, index: list[tuple[list[float], str]], k: int) -> dict[str, float]:
    """One query's metrics, by the definitions, without any vectorisation."""
    ranked = sorted(index, key=lambda item: math.dist(query, item[0]))[:k]
    relevance = [1 if other == label else 0 for _, other in ranked]
    total = sum(other == label for _, other in index)
    found = sum(relevance)
    precision, recall = found / len(relevance), found / total if total else 0.0
    at_rank = [sum(relevance[: i + 1]) / (i + 1) for i in range(len(relevance)) if relevance[i]]
    dcg = sum(r / (1 if i == 1 else math.log2(i)) for i, r in enumerate(relevance, 1))
    ideal = sum(1 / (1 if i == 1 else math.log2(i)) for i in range(1, min(k, total) + 1))
    return {
        'precision_at_k': precision,
        'recall_at_k': recall,
        'f1_score_at_k': 2 * precision * recall / (precision + recall) if found else 0.0,
        'hit_at_k': 1.0 if found else 0.0,
        'average_precision': sum(at_rank) / len(at_rank) if at_rank else 0.0,
        'reciprocal_rank': 1 / (relevance.index(1) + 1) if found else 0.0,
        'ndcg_at_k': dcg / ideal if total else 0.0,
        'dcg_at_k': dcg,
    }


@pytest.mark.parametrize('k', [1, 2, 4, 7])
def test_metrics_equal_a_plain_loop_over_points(k):
    index = [
        ([1.0, 0.1], 'a'),
        ([0.9, 0.3], 'b'),
        ([0.2, 1.0], 'a'),
        ([-0.7, 0.4], 'c'),
        ([0.5, 0.55], 'a'),
        ([-0.1, -1.0], 'b'),
        ([2.0, 1.9], 'c'),
    ]
    queries = [([0.8, 0.05], 'a'), ([0.0, 0.9], 'b'), ([-1.0, -0.2], 'c'), ([0.3, 0.3], 'd'), ([1.4, 1.2], 'a')]
    expected = [plain_metrics(point, label, index, k) for point, label in queries]
    names = sorted({label for _, label in index + queries})
    points, labels = zip(*index, strict=True)
    query_points, query_labels = zip(*queries, strict=True)
    metrics = evaluate(
        np.array(query_points, np.float32),
        np.array([names.index(label) for label in query_labels]),
        np.array(points, np.float32),
        np.array([names.index(label) for label in labels]),
        limit=k,
        distance='euclidean',
    )
    assert metrics == pytest.approx({name: np.mean([m[name] for m in expected]) for name in expected[0]}, abs=1e-12)


def test_known_values():
    relevant = np.array([[True, False, True, False]])
    metrics = retrieval_metrics(relevant, np.array([3]))
    assert metrics['precision_at_k'] == 0.5
    assert metrics['recall_at_k'] == pytest.approx(2 / 3)
    assert metrics['average_precision'] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics['dcg_at_k'] == pytest.approx(1 + 1 / math.log2(3))
    assert metrics['ndcg_at_k'] == pytest.approx((1 + 1 / math.log2(3)) / (1 + 1 + 1 / math.log2(3)))


def test_a_perfect_ranking_has_ndcg_one_even_if_more_is_relevant_than_the_limit():
    assert retrieval_metrics(np.ones((1, 5), bool), np.array([40]))['ndcg_at_k'] == pytest.approx(1)


@pytest.mark.parametrize('distance', ['cosine', 'euclidean', 'sqeuclidean'])
@pytest.mark.parametrize('exclude_self', [False, True])
def test_search_is_exact_in_any_blocks(distance, exclude_self):
    rng = np.random.default_rng(0)
    points = rng.integers(-3, 4, (83, 4)).astype(np.float32) + 0.5  # many are equally near
    exclude = np.arange(83) if exclude_self else None
    unit = points / np.linalg.norm(points, axis=1, keepdims=True) if distance == 'cosine' else points
    for query_block, index_block in [(256, 16384), (7, 10), (83, 5)]:
        found = search(
            points, points, 9, distance=distance, exclude=exclude, query_block=query_block, index_block=index_block
        )
        assert found.shape == (83, 9)
        for row in range(83):
            distances = np.linalg.norm(unit.astype(np.float64) - unit[row].astype(np.float64), axis=1)
            order = [other for other in np.argsort(distances, kind='stable') if not (exclude_self and other == row)][:9]
            assert np.allclose(distances[found[row]], distances[order], atol=1e-3)
            assert not exclude_self or row not in found[row]
            assert len(set(found[row])) == 9


@pytest.mark.parametrize('distance', ['euclidean', 'sqeuclidean'])
def test_near_points_far_from_the_origin_are_told_apart(distance):
    points = (50 + np.random.default_rng(0).normal(0, 1e-3, (200, 384))).astype(np.float32)
    assert (search(points, points, 1, distance=distance)[:, 0] == np.arange(200)).all()


def test_equal_scores_keep_the_order_of_the_index():
    points = np.ones((40, 3), np.float32)
    for block in (64, 7):
        assert (search(points[:2], points, 5, index_block=block) == np.arange(5)).all()


def test_limit_beyond_the_index_takes_all_of_it():
    points = np.eye(4, dtype=np.float32)
    labels = np.array([0, 0, 1, 1])
    assert search(points, points, 20).shape == (4, 4)
    metrics = evaluate(points, labels, points, labels, limit=20, exclude_self=True)
    assert metrics['recall_at_k'] == 1
    assert metrics['precision_at_k'] == pytest.approx(1 / 3)


def test_index_and_queries_may_be_memory_mapped(tmp_path):
    mapped = np.memmap(tmp_path / 'embeddings', np.float32, 'w+', shape=(50, 8))
    mapped[:] = np.random.default_rng(0).normal(size=(50, 8))
    assert (search(mapped, mapped, 1)[:, 0] == np.arange(50)).all()


def test_an_index_of_a_million_rows_is_searched_in_bounded_memory(tmp_path):
    """All distances at once would be 1.2 GB, a copy of the index 64 MB; blocks take about 40 MB."""
    index = np.memmap(tmp_path / 'index', np.float32, 'w+', shape=(1_000_000, 16))
    chance = np.random.default_rng(0)
    for start in range(0, len(index), 100_000):
        index[start : start + 100_000] = chance.normal(size=(100_000, 16))
    rows = chance.integers(0, len(index), 300)
    queries = index[rows] + 1e-3

    def anonymous() -> int:
        (line,) = [line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('RssAnon')]
        return int(line.split()[1]) // 1024

    peak, done = [anonymous()], threading.Event()
    before = peak[0]

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        found = search(queries, index, 20)
    finally:
        done.set()
        thread.join()
    assert (found[:, 0] == rows).all()
    assert peak[0] - before < 150, f'{peak[0] - before} MB'
