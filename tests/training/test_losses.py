from __future__ import annotations

import pytest
import torch

from training.losses import LOSSES, MINERS, has_class_weights, make_loss, make_miner

NEEDED = {'RankedListLoss': {'margin': 0.4, 'Tn': 1}, 'HistogramLoss': {'n_bins': 10}}


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.filterwarnings('ignore:Using a non-tuple sequence', 'ignore:Values of Tp or Tn')
def test_every_loss_is_built_by_name_and_gives_gradients(name):
    torch.manual_seed(0)
    loss = make_loss(name, NEEDED.get(name), num_classes=3, embedding_size=8)
    embeddings = torch.randn(12, 8, requires_grad=True)
    value = loss(embeddings, torch.arange(3).repeat_interleave(4))
    value.backward()
    assert value.shape == ()
    assert torch.isfinite(value)
    assert embeddings.grad is not None
    assert has_class_weights(name) == any(weight.shape.numel() >= 24 for weight in loss.parameters())


@pytest.mark.parametrize('name', MINERS)
def test_every_miner_is_built_by_name(name):
    embeddings = torch.nn.functional.normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)))
    miner = make_miner(name, None)
    assert miner is not None
    assert len(miner(embeddings, torch.arange(3).repeat_interleave(4))) in (3, 4)


def test_options_reach_the_loss():
    loss = make_loss(
        'TripletMarginLoss',
        {'margin': 0.3, 'distance': 'CosineSimilarity', 'reducer': 'MeanReducer'},
        num_classes=3,
        embedding_size=8,
    )
    assert loss.margin == 0.3
    assert type(loss.distance).__name__ == 'CosineSimilarity'
    assert type(loss.reducer).__name__ == 'MeanReducer'


def test_no_miner_is_none():
    assert make_miner(None, None) is None
