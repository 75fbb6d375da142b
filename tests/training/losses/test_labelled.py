"""Losses of labelled items that are no other library's, and what is common to all of them."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import losses, miners

from tests.training.losses.conftest import normal
from training.losses import make_objective

SIZES = {'num_classes': 6, 'embedding_size': 8}


def test_columns_are_one_batch_without_what_came_before():
    one, two = normal(6, 8), normal(6, 8, seed=1)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    keys = [torch.tensor([11, 12, 13, 14, 15, 16]), torch.tensor([21, 22, 13, 24, 25, 21])]
    objective = make_objective('ContrastiveLoss', **SIZES)
    together, of = torch.cat([one, two]), labels.repeat(2)
    torch.testing.assert_close(objective([one, two], labels), losses.ContrastiveLoss()(together, of))
    kept = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 9, 10])
    expected = losses.ContrastiveLoss()(together[kept], of[kept])
    torch.testing.assert_close(objective([one, two], labels, None, keys), expected)


def test_one_column_is_taken_as_it_is():
    one, labels = normal(6, 8), torch.tensor([0, 0, 1, 1, 2, 2])
    objective = make_objective('ContrastiveLoss', **SIZES)
    expected = losses.ContrastiveLoss()(one, labels)
    torch.testing.assert_close(objective([one], labels, None, [torch.zeros(6, dtype=torch.int64)]), expected)


def test_a_miner_picks_the_triplets():
    embeddings, labels = normal(24, 8), torch.arange(24) % 6
    objective = make_objective('TripletMarginLoss', miner='BatchHardMiner', **SIZES)
    mined = miners.BatchHardMiner()(embeddings, labels)
    torch.testing.assert_close(
        objective([embeddings], labels), losses.TripletMarginLoss()(embeddings, labels, mined), rtol=1e-5, atol=1e-7
    )


def test_ready_triplets():
    columns = [normal(5, 8, seed=seed) for seed in range(3)]
    objective = make_objective(
        'TripletMarginLoss',
        {'margin': 0.5, 'reducer': 'MeanReducer'},
        miner='EmbeddingsAlreadyPackagedAsTriplets',
        **SIZES,
    )
    query, positive, negative = (torch.nn.functional.normalize(column) for column in columns)
    expected = [max(0.0, math.dist(query[i], positive[i]) - math.dist(query[i], negative[i]) + 0.5) for i in range(5)]
    assert objective.shape == 'triplets'
    assert float(objective(columns)) == pytest.approx(sum(expected) / 5, rel=1e-4)


def test_maximum_loss_miner_takes_the_part_of_the_highest_loss():
    embeddings, labels = normal(24, 8), torch.arange(24) % 6
    plain = make_objective('ContrastiveLoss', **SIZES)
    options = {'output_batch_size': 8, 'num_trials': 6}
    mined = make_objective('ContrastiveLoss', miner='MaximumLossMiner', miner_options=options, **SIZES)
    torch.manual_seed(3)
    value = mined([embeddings], labels)
    torch.manual_seed(3)
    parts = [torch.randperm(24)[:8] for _ in range(6)]
    torch.testing.assert_close(value, max(plain([embeddings[rows]], labels[rows]) for rows in parts))


@pytest.mark.parametrize('smooth', [False, True])
def test_centroid_triplet(smooth):
    embeddings, labels = normal(7, 4), [0, 0, 0, 1, 1, 2, 0]
    terms = []
    for i in range(7):
        mates = [embeddings[j] for j in range(7) if labels[j] == labels[i] and j != i]
        if not mates:
            continue
        unit = torch.nn.functional.normalize
        near = math.dist(unit(embeddings[i], dim=0), unit(sum(mates) / len(mates), dim=0))
        for other in {0, 1, 2} - {labels[i]}:
            rows = [embeddings[j] for j in range(7) if labels[j] == other]
            violation = near - math.dist(unit(embeddings[i], dim=0), unit(sum(rows) / len(rows), dim=0)) + 0.3
            terms.append(math.log1p(math.exp(violation)) if smooth else max(0.0, violation))
    terms = [term for term in terms if term > 0]
    objective = make_objective('CentroidTripletLoss', {'margin': 0.3, 'smooth_loss': smooth}, **SIZES)
    value = objective([embeddings], torch.tensor(labels))
    assert float(value) == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_manifold_groups_classes_by_its_proxies():
    torch.manual_seed(0)
    embeddings, labels = normal(12, 8), torch.arange(12) % 6
    objective = make_objective('ManifoldLoss', {'K': 4}, **SIZES)
    library = losses.ManifoldLoss(l=8, K=4)
    library.load_state_dict(objective.loss.state_dict())
    torch.testing.assert_close(objective([embeddings], labels), library(embeddings, indices_tuple=labels % 4))


def test_dynamic_soft_margin_keeps_a_running_histogram():
    labels = torch.arange(12) % 3
    batches = [normal(12, 8, seed=seed) for seed in range(3)]
    ours = make_objective('DynamicSoftMarginLoss', {'momentum': 0.2}, **SIZES)
    library = losses.DynamicSoftMarginLoss(momentum=0.2)
    for batch in batches:
        torch.testing.assert_close(ours([batch], labels), library(batch, labels), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.state_dict()['loss.hist_'], library.hist_, rtol=1e-4, atol=1e-6)
    before = ours.state_dict()['loss.hist_'].clone()
    ours.eval()([batches[0]], labels)
    assert torch.equal(ours.state_dict()['loss.hist_'], before)


def test_a_violation_beyond_all_bins_is_borne():
    embeddings = torch.tensor([[1.0, 0], [-1, 0.001], [1, 0.001], [-1, 0]]).requires_grad_()
    objective = make_objective('DynamicSoftMarginLoss', num_classes=2, embedding_size=2)
    value = objective([embeddings], torch.tensor([0, 0, 1, 1]))
    assert torch.isfinite(value)


def test_nca_of_a_batch_without_positives_is_0():
    assert float(make_objective('NCALoss', **SIZES)([normal(6, 8)], torch.arange(6))) == 0
    embeddings, labels = normal(12, 8), torch.arange(12) % 5
    expected = losses.NCALoss()(embeddings, labels)
    torch.testing.assert_close(make_objective('NCALoss', **SIZES)([embeddings], labels), expected)


def test_margin_loss_has_one_beta_for_classes_that_it_has_not_seen():
    """It is not one of the losses that learn weights of classes, so it is also asked about others."""
    objective = make_objective('MarginLoss', {'learn_beta': True}, num_classes=2, embedding_size=3)
    assert [parameter.numel() for parameter in objective.parameters()] == [1]
    embeddings = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(objective([embeddings], torch.tensor([5, 5, 6, 6, 7, 7])))
