"""The losses of clicks, against the formulas written out number by number."""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.losses.conftest import normal
from training.losses import make_objective

SIZES = {'num_classes': 2, 'embedding_size': 6}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def nearness(kind: str, a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    if kind == 'dot':
        return dot
    if kind == 'euclidean':
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def slow(triplets, confidences, m, *, cosine=False, fine=False, kind='cosine', least=-1.0, most=math.inf):
    """The formulas, pair by pair."""
    t = -1 if kind == 'euclidean' else 1
    total, count, weighted, weights = 0.0, 0, 0.0, 0.0
    for (query, positive, negative), c in zip(triplets, confidences, strict=True):
        x = nearness(kind, query, positive) - nearness(kind, query, negative)
        if not least < abs(x) < most:
            continue
        d = -t * x + m
        total += c * (sigmoid(400 * d - 6) if cosine else sigmoid(d))
        count += 1
        if fine:
            w = sigmoid(int(100 / m) * (m - abs(x)))
            weighted, weights = weighted + abs(x) * w, weights + w
    return total / count + (weighted / (weights + 1e-10) if fine else 0.0)


def with_differences(*differences: float) -> list[torch.Tensor]:
    """Unit vectors such that the cosine of the positive less that of the negative is this."""
    query, positive, negative = torch.zeros(3, len(differences), 6, dtype=torch.float64)
    query[:, 0] = 1
    for row, difference in enumerate(differences):
        positive[row, :2] = torch.tensor([0.5 + difference, math.sqrt(1 - (0.5 + difference) ** 2)])
        negative[row, :2] = torch.tensor([0.5, math.sqrt(0.75)])
    return [query, positive, negative]


@pytest.mark.parametrize(
    ('name', 'values'),
    [
        ('ProbMarginRankingLoss', (0.490019, 0.493763, 0.500004)),
        ('CosineProbMarginRankingLoss', (0.332524, 0.339327, 0.665842)),
    ],
)
def test_known_values(name, values):
    """Three pairs of the differences −0.02, 0.02 and 0.15, at the margins that are usual."""
    columns = with_differences(-0.02, 0.02, 0.15)
    for margin, value in zip((0.01, 0.025, 0.05), values, strict=True):
        objective = make_objective(name, {'margin': margin}, **SIZES)
        assert objective(columns).item() == pytest.approx(value, abs=6e-7)


@pytest.mark.parametrize('fine', [False, True])
@pytest.mark.parametrize('margin', [0.01, 0.05, 1.0])
@pytest.mark.parametrize('kind', ['cosine', 'dot', 'euclidean', 'steep'])
def test_parity_with_the_formula_and_its_gradient(kind, margin, fine):
    columns = [normal(9, 6, seed=seed, dtype=torch.float64) for seed in (1, 2, 3)]
    if kind == 'steep':  # differences where it is not flat
        columns[2] = columns[1] + 0.02 * columns[2]
    confidences = torch.linspace(0, 2, 9, dtype=torch.float64)
    name, options = 'ProbMarginRankingLoss', {'similarity': kind}
    if kind == 'steep':
        name, options = 'CosineProbMarginRankingLoss', {}
    objective = make_objective(name, {'margin': margin, 'fine_small_difference': fine, **options}, **SIZES)
    beside = {'fine': fine, 'cosine': kind == 'steep', 'kind': 'cosine' if kind == 'steep' else kind}

    def by_hand(values):
        rows = [[value[row].tolist() for value in values] for row in range(9)]
        return slow(rows, confidences.tolist(), margin, **beside)

    assert objective(columns, None, confidences).item() == pytest.approx(by_hand(columns), rel=1e-9)
    leaf = [column.clone().requires_grad_() for column in columns]
    objective(leaf, None, confidences).backward()
    for column in range(3):
        step = torch.zeros_like(columns[column])
        step[4, 2] = 1e-6
        moved = [
            [value + sign * step if number == column else value for number, value in enumerate(columns)]
            for sign in (1, -1)
        ]
        slope = (by_hand(moved[0]) - by_hand(moved[1])) / 2e-6
        assert leaf[column].grad[4, 2].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_without_scores_every_triplet_counts_one():
    columns = with_differences(-0.1, 0.2, 0.3)
    objective = make_objective('ProbMarginRankingLoss', **SIZES)
    assert objective(columns).item() == objective(columns, None, torch.ones(3)).item()


def test_differences_out_of_bounds_are_left_out():
    columns, confidences = with_differences(-0.02, 0.02, 0.15, 0.4), torch.tensor([1.0, 0.5, 2.0, 1.0])
    rows = [[column[row].tolist() for column in columns] for row in range(4)]
    objective = make_objective('ProbMarginRankingLoss', {'min_difference': 0.05, 'max_difference': 0.3}, **SIZES)
    expected = slow(rows, confidences.tolist(), 1.0, least=0.05, most=0.3)
    assert objective(columns, None, confidences).item() == pytest.approx(expected)
    leaf = [column.clone().requires_grad_() for column in columns]
    nothing = make_objective('ProbMarginRankingLoss', {'min_difference': 1.9}, **SIZES)(leaf)
    nothing.backward()
    assert nothing.item() == 0 and not leaf[0].grad.any()


def test_a_step_brings_the_positive_nearer():
    columns = [column.float().requires_grad_() for column in with_differences(-0.02, 0.0, 0.01)]
    objective = make_objective('CosineProbMarginRankingLoss', {'margin': 0.02}, **SIZES)
    before = objective(columns)
    before.backward()
    after = objective([column - 0.01 * column.grad for column in columns])
    assert after < before


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'margin': -1}, 'margin is -1: give a number above 0'),
        ({'margin': True}, 'margin is True: give a number above 0'),
        ({'margin': 0, 'fine_small_difference': True}, 'margin is 0: fine_small_difference needs one above 0'),
        ({'min_difference': 0.3, 'max_difference': 0.2}, 'min_difference 0.3 is not below max_difference 0.2'),
        ({'similarity': 'l1'}, "similarity is 'l1': give 'cosine' or 'dot' or 'euclidean'"),
        ({'base_margin': 1}, "unknown option of ProbMarginRankingLoss 'base_margin': did you mean margin"),
    ],
)
def test_wrong_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_objective('ProbMarginRankingLoss', options, **SIZES)
