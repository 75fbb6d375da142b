from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.embed import chunk_cuts, embed, embed_all
from training.loop import MetricLearning
from training.losses import make_loss
from training.progress import Reporter

CPU = torch.device('cpu')


def cost(lengths: np.ndarray, cuts: list[int] | tuple[int, ...], chunk_cost: int) -> int:
    return sum(len(chunk) * chunk.max() + chunk_cost for chunk in np.split(lengths, list(cuts)))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(0, 80))
@settings(max_examples=200, deadline=None)
def test_cuts_are_the_best_there_are(lengths, chunk_cost):
    ordered = np.sort(np.array(lengths))
    every = [cuts for n in range(len(ordered)) for cuts in combinations(range(1, len(ordered)), n)]
    best = min(cost(ordered, cuts, chunk_cost) for cuts in every)
    assert cost(ordered, chunk_cuts(ordered, chunk_cost), chunk_cost) == best


def test_chunks_are_limited():
    assert len(chunk_cuts(np.arange(1, 101), 0, max_chunks=4)) == 3


def test_chunks_compute_little_padding():
    lengths = np.sort(np.random.default_rng(0).lognormal(2.6, 0.6, 64).astype(int).clip(4, 100))
    padded = cost(lengths, chunk_cuts(lengths, 128), 0)
    assert padded < 1.4 * lengths.sum() < len(lengths) * lengths.max() / 1.9


def gradients(task: MetricLearning) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in task.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(('loss', 'miner'), [('TripletMarginLoss', None), ('ArcFaceLoss', None)])
def test_chunks_give_the_loss_and_gradients_of_one_padded_forward(encoder, tokenised, monkeypatch, loss, miner):
    torch.manual_seed(0)
    task = MetricLearning(encoder, make_loss(loss, None, num_classes=6, embedding_size=encoder.dim)).eval()
    rows = np.random.default_rng(0).permutation(len(tokenised))[:48]
    labels = torch.from_numpy(tokenised.labels[rows]).long()

    plain = encoder(*tokenised.tokens.padded(rows))
    plain_loss = task.loss(plain, labels)
    plain_loss.backward()
    expected = gradients(task)
    task.zero_grad()

    monkeypatch.setattr('training.embed.CHUNK_COST', {'cpu': 8})
    lengths = np.sort(tokenised.tokens.lengths(rows))
    assert len(chunk_cuts(lengths, 8)) >= 3, 'the test is about several chunks'
    chunked_loss = task(tokenised.tokens, rows, labels)
    chunked_loss.backward()
    found = gradients(task)

    assert torch.allclose(embed(encoder, tokenised.tokens, rows, CPU), plain, atol=1e-5)
    assert chunked_loss.item() == pytest.approx(plain_loss.item(), abs=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5 * max(1, gradient.abs().max().item())), name


def test_all_texts_are_embedded_in_their_order(encoder, tokenised, tmp_path, monkeypatch):
    expected = encoder(*tokenised.tokens.padded(np.arange(len(tokenised)))).detach().numpy()
    options = {'report': Reporter(), 'stage': 'Embedding', 'file': tmp_path / 'embeddings'}
    small = embed_all(encoder, tokenised.tokens, encoder.dim, CPU, tokens_per_batch=50, **options)
    assert np.abs(small - expected).max() < 1e-5
    monkeypatch.setattr('training.embed.IN_MEMORY_BYTES', 0)
    mapped = embed_all(encoder, tokenised.tokens, encoder.dim, CPU, **options)
    assert isinstance(mapped, np.memmap)
    assert np.abs(mapped - expected).max() < 1e-5
