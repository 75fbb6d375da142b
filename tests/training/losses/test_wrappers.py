"""Losses around other losses."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import losses, miners

from tests.training.losses.conftest import normal
from training.losses import make_objective

SIZES = {'num_classes': 6, 'embedding_size': 8}
SUPPORTED = losses.CrossBatchMemory.supported_losses()


def test_matryoshka_cuts_every_column():
    columns = [normal(6, 8, seed=seed) for seed in range(2)]
    labels = torch.tensor([0, 1, 2, 3, 0, 5])
    options = {'loss': 'MultipleNegativeRankingLoss', 'loss_options': {'scale': 3}, 'dims': [8, 3], 'weights': [1, 0.5]}
    inner = make_objective('MultipleNegativeRankingLoss', {'scale': 3}, **SIZES)
    objective = make_objective('MatryoshkaLoss', options, **SIZES)
    assert objective.shape == 'pairs'
    expected = inner(columns, labels) + 0.5 * inner([column[:, :3] for column in columns], labels)
    torch.testing.assert_close(objective(columns, labels), expected)


def test_matryoshka_has_class_weights_for_every_dim():
    objective = make_objective('MatryoshkaLoss', {'loss': 'ArcFaceLoss', 'dims': [8, 4]}, **SIZES)
    assert [tuple(weight.shape) for weight in objective.parameters()] == [(8, 6), (4, 6)]
    objective([normal(6, 8)], torch.arange(6)).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in objective.parameters())


@pytest.mark.parametrize(('size', 'dims'), [(384, (384, 192, 96, 48)), (64, (64, 32)), (20, (20,))])
def test_matryoshka_halves_the_size_by_default(size, dims):
    objective = make_objective('MatryoshkaLoss', {'loss': 'TripletMarginLoss'}, num_classes=2, embedding_size=size)
    assert objective.dims == dims


def test_matryoshka_takes_a_miner_and_a_models_scale():
    embeddings, labels = normal(12, 8), torch.arange(12) % 3
    options = {'loss': 'TripletMarginLoss', 'dims': [8]}
    mined = make_objective('MatryoshkaLoss', options, miner='BatchHardMiner', **SIZES)
    expected = make_objective('TripletMarginLoss', miner='BatchHardMiner', **SIZES)([embeddings], labels)
    torch.testing.assert_close(mined([embeddings], labels), expected)
    clip = make_objective('MatryoshkaLoss', {'loss': 'CLIPLoss', 'dims': [8, 4]}, logit_scale=2.5, **SIZES)
    assert [float(scale) for scale in clip.parameters()] == [2.5, 2.5]


def test_multiple_losses_is_a_weighted_sum():
    embeddings, labels = normal(12, 8), torch.arange(12) % 3
    parts = [
        {'loss': 'TripletMarginLoss', 'loss_options': {'margin': 0.4}, 'miner': 'BatchHardMiner'},
        'ContrastiveLoss',
    ]
    objective = make_objective('MultipleLosses', {'losses': parts, 'weights': [2, 0.5]}, **SIZES)
    mined = miners.BatchHardMiner()(embeddings, labels)
    expected = 2 * losses.TripletMarginLoss(margin=0.4)(embeddings, labels, mined)
    expected += 0.5 * losses.ContrastiveLoss()(embeddings, labels)
    torch.testing.assert_close(objective([embeddings], labels), expected)


def test_losses_of_labels_and_of_pairs_go_together():
    columns, labels = [normal(6, 8), normal(6, 8, seed=1)], torch.arange(6)
    names = ['NTXentLoss', 'MultipleNegativeRankingLoss']
    objective = make_objective('MultipleLosses', {'losses': names}, **SIZES)
    assert objective.shape == 'pairs'
    expected = sum(make_objective(name, **SIZES)(columns, labels) for name in names)
    torch.testing.assert_close(objective(columns, labels), expected)


@pytest.mark.parametrize('miner', [None, 'BatchHardMiner', 'MultiSimilarityMiner'])
@pytest.mark.parametrize('name', SUPPORTED)
def test_memory_is_the_librarys(name, miner):
    """Over batches that fill the memory and go around it: tolerance 1e-5."""
    ours = make_objective('CrossBatchMemory', {'loss': name, 'memory_size': 30}, miner=miner, **SIZES)
    chosen = None if miner is None else getattr(miners, miner)()
    options = {'num_classes': 6} if name == 'MarginLoss' else {}
    library = losses.CrossBatchMemory(getattr(losses, name)(**options), 8, memory_size=30, miner=chosen)
    for seed in range(4):
        labels = torch.arange(12) % 5
        one, two = (normal(12, 8, seed=seed).requires_grad_() for _ in range(2))
        values = ours([one], labels), library(two, labels)
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
        for value in values:
            value.backward()
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)


def test_memory_of_another_size_gives_another_loss():
    values = []
    for size in (12, 36):
        objective = make_objective('CrossBatchMemory', {'loss': 'NTXentLoss', 'memory_size': size}, **SIZES)
        objective([normal(12, 8)], torch.arange(12) % 3)
        values.append(float(objective([normal(12, 8, seed=1)], torch.arange(12) % 3)))
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_memory_is_a_part_of_the_state():
    labels, options = torch.arange(12) % 3, {'loss': 'NTXentLoss', 'memory_size': 30}
    whole, stopped = (make_objective('CrossBatchMemory', options, **SIZES) for _ in range(2))
    for seed in range(3):
        whole([normal(12, 8, seed=seed)], labels)
    stopped.load_state_dict(whole.state_dict())
    batch = normal(12, 8, seed=9)
    assert whole([batch], labels) == stopped([batch], labels)


def test_memory_is_left_alone_outside_of_training():
    labels = torch.arange(12) % 3
    objective = make_objective('CrossBatchMemory', {'loss': 'NTXentLoss'}, **SIZES)
    objective([normal(12, 8)], labels)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    value = objective.eval()([normal(12, 8, seed=1)], labels)
    torch.testing.assert_close(value, losses.NTXentLoss()(normal(12, 8, seed=1), labels))
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())


def test_a_batch_that_the_memory_cannot_hold_is_refused():
    objective = make_objective('CrossBatchMemory', {'loss': 'NTXentLoss', 'memory_size': 8}, **SIZES)
    with pytest.raises(ValueError, match='memory_size is 8, which a batch of 12 items does not fit in'):
        objective([normal(12, 8)], torch.arange(12) % 3)
