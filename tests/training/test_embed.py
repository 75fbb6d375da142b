from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.embed import FeatureEmbedder, budget_chunks, chunk_cuts, embed_all
from training.progress import Reporter
from training.rows import Rows, RowsWriter

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


TEXTS = ['please refund my card', 'pin', 'why is the rate so low now', 'what now', 'card ' * 20, 'how do i get my code']


@pytest.fixture
def features(encoder, tmp_path):
    with RowsWriter(tmp_path / 'features', np.int32) as writer:
        writer.append(encoder.preprocessor.features(TEXTS))
    return Rows(tmp_path / 'features')


def padded(encoder, features, items):
    inputs = encoder.preprocessor.collate(features.take(items))
    return encoder(**{name: torch.from_numpy(inputs[name]) for name in encoder.input_names})


@pytest.mark.parametrize('pack', [True, False], ids=['packed', 'in sorted chunks'])
def test_embeddings_and_gradients_are_those_of_one_padded_forward(encoder, features, monkeypatch, pack):
    monkeypatch.setattr('training.embed.CHUNK_COST', {'cpu': 2})
    items = np.array([4, 0, 3, 1, 5, 2])
    assert len(chunk_cuts(np.sort(features.lengths(items)), 2)) >= 2, 'the test is about several chunks'
    found = FeatureEmbedder(encoder, features, pack).embed(items, CPU)
    expected = padded(encoder, features, items)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    parameters = [weight for weight in encoder.parameters() if weight.requires_grad]
    one, two = (torch.autograd.grad((values * weights).sum(), parameters) for values in (found, expected))
    for first, second in zip(one, two, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def test_all_items_are_embedded_in_their_order(encoder, features, tmp_path, monkeypatch):
    items = np.array([5, 3, 3, 0, 4])
    expected = padded(encoder, features, items).detach().numpy()
    options = {'report': Reporter(), 'stage': 'Embedding', 'file': tmp_path / 'embeddings'}
    embedder = FeatureEmbedder(encoder, features)
    small = embed_all(embedder, encoder, items, CPU, budget=8, **options)
    assert np.abs(small - expected).max() < 1e-5
    monkeypatch.setattr('training.embed.IN_MEMORY_BYTES', 0)
    mapped = embed_all(embedder, encoder, items, CPU, **options)
    assert isinstance(mapped, np.memmap)
    assert np.abs(mapped - expected).max() < 1e-5


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100))
@settings(max_examples=100, deadline=None)
def test_chunks_keep_within_the_budget(costs, budget):
    chunks = list(budget_chunks(np.array(costs), budget))
    assert sorted(np.concatenate(chunks).tolist()) == list(range(len(costs)))
    assert all(len(chunk) == 1 or sum(costs[item] for item in chunk) <= budget for chunk in chunks)
