"""Losses of pairs, scored pairs and triplets, against loops over points made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from pytorch_metric_learning import losses
from torch import Tensor

from tests.training.losses.conftest import normal
from training.losses import make_objective

SIZES = {'num_classes': 4, 'embedding_size': 3}
ONE = torch.tensor([[1.0, 0.0, 0.0], [3.0, 4.0, 0.0], [0.0, 1.0, 1.0], [1.0, 2.0, -2.0]])
TWO = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 0.0], [1.0, 0.0, 2.0], [-1.0, 1.0, 0.0]])
THREE = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [2.0, 0.0, 1.0]])


def cosine(a: Tensor, b: Tensor) -> float:
    dot = sum(float(x * y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(float(x) ** 2 for x in a) * sum(float(y) ** 2 for y in b))


def dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x * y) for x, y in zip(a, b, strict=True))


def info_nce(logits: Sequence[Sequence[float]], ignored: set[tuple[int, int]] = frozenset()) -> float:  # type: ignore[assignment]
    """The mean over the rows of −log of the share of the diagonal."""
    total = 0.0
    for i, row in enumerate(logits):
        total -= math.log(
            math.exp(row[i]) / sum(math.exp(value) for j, value in enumerate(row) if (i, j) not in ignored)
        )
    return total / len(logits)


def transposed(logits: Sequence[Sequence[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*logits, strict=True)]


def similarities(scale: float, similarity=cosine) -> list[list[float]]:
    return [[scale * similarity(a, p) for p in TWO] for a in ONE]


def flipped(pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
    return {(j, i) for i, j in pairs}


@pytest.mark.parametrize(
    ('options', 'scale', 'similarity'),
    [({}, 20, cosine), ({'scale': 5}, 5, cosine), ({'temperature': 0.1}, 10, cosine), ({'similarity': 'dot'}, 20, dot)],
)
def test_multiple_negative_ranking(options, scale, similarity):
    logits = similarities(scale, similarity)
    objective = make_objective('MultipleNegativeRankingLoss', options, **SIZES)
    assert objective([ONE, TWO]).item() == pytest.approx(info_nce(logits), rel=1e-5)
    objective = make_objective('MultipleNegativeRankingLoss', options | {'symmetric': True}, **SIZES)
    both = (info_nce(logits) + info_nce(transposed(logits))) / 2
    assert objective([ONE, TWO]).item() == pytest.approx(both, rel=1e-5)


FALSE_NEGATIVES = [
    (torch.tensor([0, 1, 0, 2]), None, {(0, 2), (2, 0)}),
    (None, [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8])], set()),
    (None, [torch.tensor([1, 2, 3, 1]), torch.tensor([5, 6, 7, 8])], {(0, 3), (3, 0)}),  # one anchor, two positives
    (None, [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 5, 8])], {(0, 2), (2, 0)}),  # one positive, two anchors
    (None, [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 1, 7, 8])], {(0, 1)}),  # the anchor itself
    (torch.tensor([0, 1, 1, 2]), [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 1, 7, 8])], {(1, 2), (2, 1), (0, 1)}),
]  # fmt: skip


@pytest.mark.parametrize(('labels', 'keys', 'ignored'), FALSE_NEGATIVES)
def test_what_is_no_negative_is_left_out(labels, keys, ignored):
    logits = similarities(5)
    ranking = make_objective('MultipleNegativeRankingLoss', {'scale': 5}, **SIZES)
    assert ranking([ONE, TWO], labels, None, keys).item() == pytest.approx(info_nce(logits, ignored), rel=1e-5)
    clip = make_objective('CLIPLoss', {'temperature': 0.2}, **SIZES)
    both = (info_nce(logits, ignored) + info_nce(transposed(logits), flipped(ignored))) / 2
    assert clip([ONE, TWO], labels, None, keys).item() == pytest.approx(both, rel=1e-5)
    siglip = make_objective('SigLIPLoss', {'scale': 5, 'bias': -1}, **SIZES)
    total = 0.0
    for i in range(4):
        for j in range(4):
            if (i, j) not in ignored:
                total += math.log(1 + math.exp(-(1 if i == j else -1) * (logits[i][j] - 1)))
    assert siglip([ONE, TWO], labels, None, keys).item() == pytest.approx(total / 4, rel=1e-5)


@pytest.mark.parametrize(
    ('options', 'model', 'scale'),
    [({}, None, 1 / 0.07), ({}, math.log(50), 50), ({'temperature': 0.5}, math.log(50), 2), ({}, 9.0, 100)],
)
def test_clip_starts_at_the_models_scale(options, model, scale):
    objective = make_objective('CLIPLoss', options, logit_scale=model, **SIZES)
    assert objective.logit_scale.exp().item() == pytest.approx(scale, rel=1e-5)
    logits = similarities(scale)
    both = (info_nce(logits) + info_nce(transposed(logits))) / 2
    assert objective([ONE, TWO]).item() == pytest.approx(both, rel=1e-4)


def test_clip_learns_its_scale_up_to_a_bound_and_back():
    objective = make_objective('CLIPLoss', {'temperature': 0.02}, **SIZES)
    objective([ONE, TWO]).backward()
    assert objective.logit_scale.grad != 0
    with torch.no_grad():
        objective.logit_scale.fill_(7.0)
    objective.zero_grad()
    objective([ONE, TWO]).backward()
    assert float(objective.logit_scale) == pytest.approx(math.log(100))
    assert objective.logit_scale.grad != 0


def test_siglip_starts_at_the_papers_scale_and_bias_and_learns_both():
    objective = make_objective('SigLIPLoss', **SIZES)
    assert float(objective.logit_scale) == pytest.approx(math.log(10))
    assert float(objective.logit_bias) == -10
    objective([ONE, TWO]).backward()
    assert objective.logit_scale.grad != 0 and objective.logit_bias.grad != 0


def test_cosine_similarity():
    scores = torch.tensor([0.9, 0.1, -0.5, 1.0])
    expected = sum((cosine(a, b) - float(s)) ** 2 for a, b, s in zip(ONE, TWO, scores, strict=True)) / 4
    objective = make_objective('CosineSimilarityLoss', **SIZES)
    assert objective([ONE, TWO], None, scores).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match='learns from scores'):
        objective([ONE, TWO])


@pytest.mark.parametrize(('name', 'similarity'), [('dot', dot), ('cosine', cosine)])
def test_margin_mse(name, similarity):
    scores = torch.tensor([0.9, 4.0, -0.5, 1.0])
    expected = 0.0
    for q, p, n, score in zip(ONE, TWO, THREE, scores, strict=True):
        expected += (similarity(q, p) - similarity(q, n) - float(score)) ** 2 / 4
    objective = make_objective('MarginMSELoss', {'similarity': name}, **SIZES)
    assert objective([ONE, TWO, THREE], None, scores).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match='learns from scores'):
        objective([ONE, TWO, THREE])


def test_vicreg_is_the_librarys():
    one, two = normal(12, 8), normal(12, 8, seed=1)
    options = {'invariance_lambda': 5, 'variance_mu': 3, 'covariance_v': 2, 'eps': 0.01}
    objective = make_objective('VICRegLoss', options, **SIZES)
    expected = losses.VICRegLoss(**options)(one, ref_emb=two)
    torch.testing.assert_close(objective([one, two], torch.arange(12)), expected)


@pytest.mark.parametrize('symmetric', [True, False])
@pytest.mark.parametrize('inner', ['NTXentLoss', 'TripletMarginLoss'])
def test_self_supervised_is_the_librarys_where_rows_are_classes(inner, symmetric):
    one, two = normal(12, 8), normal(12, 8, seed=1)
    objective = make_objective('SelfSupervisedLoss', {'loss': inner, 'symmetric': symmetric}, **SIZES)
    expected = losses.SelfSupervisedLoss(getattr(losses, inner)(), symmetric=symmetric)(one, two)
    for labels in (None, torch.arange(12) + 5):
        torch.testing.assert_close(objective([one, two], labels), expected, rtol=1e-5, atol=1e-6)


def test_self_supervised_knows_rows_of_one_label():
    one, two = normal(12, 8), normal(12, 8, seed=1)
    labels = torch.arange(12) % 5
    objective = make_objective('SelfSupervisedLoss', {'loss': 'NTXentLoss'}, **SIZES)
    expected = losses.NTXentLoss()(torch.cat([one, two]), labels.repeat(2))
    torch.testing.assert_close(objective([one, two], labels), expected, rtol=1e-5, atol=1e-6)


def test_vicreg_of_one_pair_is_the_distance_of_its_views():
    one, two = ONE[:1].clone().requires_grad_(), TWO[:1]
    loss = make_objective('VICRegLoss', {'invariance_lambda': 3}, **SIZES)([one, two])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(3 * float((ONE[0] - TWO[0]).square().mean()))
    assert torch.isfinite(one.grad).all()
