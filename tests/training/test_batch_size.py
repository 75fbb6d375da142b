"""What fits at once, by what a forward saves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import training.batch_size as batch_size
from finetuner.inference.mlp_encoder import MLPEncoder
from training.batch_size import find_batch_size, item_bytes, token_budget
from training.embed import ITEMS_AT_ONCE, FeatureEmbedder
from training.freezing import freeze
from training.losses.objective import Objective
from training.rows import Rows, RowsWriter
from training.task import Task

CPU = torch.device('cpu')


@dataclass
class Column:
    encoder: str = 'model'


class Pairs:
    """As many examples of two columns as asked for."""

    columns = (Column(), Column())

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count


@pytest.fixture
def tokens(tmp_path) -> Rows:
    with RowsWriter(tmp_path / 'tokens', np.int32) as writer:
        writer.append([np.full(length, 7) for length in (3, 9, 20, 5)])
    return Rows(tmp_path / 'tokens')


@pytest.fixture
def vectors(tmp_path) -> Rows:
    with RowsWriter(tmp_path / 'vectors', np.float32) as writer:
        writer.append([np.zeros(10)] * 3)
    return Rows(tmp_path / 'vectors')


@pytest.fixture
def memory(monkeypatch):
    """Sets how much memory there is."""
    return lambda amount: monkeypatch.setattr(batch_size, 'available', lambda device: amount)


def test_saved_bytes_are_those_of_the_layers_that_are_trained(vectors):
    encoder = MLPEncoder(10, [20, 30, 40], activation='tanh')
    embedder = FeatureEmbedder(encoder, vectors)
    # inputs of the linear layers, which are the outputs of tanh before them
    assert item_bytes(encoder, embedder, CPU) == 4 * (10 + 20 + 30)
    freeze(encoder, 2)
    assert item_bytes(encoder, embedder, CPU) == 4 * 30
    freeze(encoder, True)
    assert item_bytes(encoder, embedder, CPU) == 0


def test_the_batch_size_fits_into_memory(encoder, tokens, memory, caplog):
    caplog.set_level('INFO')
    task, embedders = Task({'model': encoder}, Objective()), {'model': FeatureEmbedder(encoder, tokens)}
    each = 2 * item_bytes(encoder, embedders['model'], CPU)
    weights = 3 * 4 * sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    found = {}
    for count in (1, 20, 70, 130, 1000):
        memory(weights + 2 * each * count)
        found[count] = find_batch_size(task, Pairs(100_000), embedders, CPU)
    assert found == {1: 8, 20: 16, 70: 64, 130: 128, 1000: 256}
    assert 'fit into half of the free memory' in caplog.text and 'the largest that is tried' in caplog.text


def test_an_epoch_has_enough_batches(encoder, tokens, memory, caplog):
    caplog.set_level('INFO')
    memory(1 << 40)
    task, embedders = Task({'model': encoder}, Objective()), {'model': FeatureEmbedder(encoder, tokens)}
    assert find_batch_size(task, Pairs(50), embedders, CPU) == 8
    assert find_batch_size(task, Pairs(600), embedders, CPU) == 32
    assert 'Batch size 32: 600 examples give 19 batches an epoch' in caplog.text


def test_measuring_changes_nothing(vectors):
    encoder = MLPEncoder(10, [20])
    encoder.layers.append(torch.nn.BatchNorm1d(20))
    encoder.eval()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    random = torch.get_rng_state()
    item_bytes(encoder, FeatureEmbedder(encoder, vectors), CPU)
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert not any(module.training for module in encoder.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_budgets_are_counted_as_costs_are(encoder, tokens, vectors, memory):
    embedder = FeatureEmbedder(encoder, tokens)
    weights = 3 * 4 * sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    memory(weights + int(2 * 10 * item_bytes(encoder, embedder, CPU)) + 2)
    assert token_budget(encoder, embedder, CPU) == 200  # ten times the longest text
    memory(0)
    assert token_budget(encoder, embedder, CPU) == 20

    perceptron = MLPEncoder(10, [20, 30])
    embedder = FeatureEmbedder(perceptron, vectors)
    memory(3 * 4 * sum(p.numel() for p in perceptron.parameters()) + 2 * 7 * 4 * (10 + 20))
    assert token_budget(perceptron, embedder, CPU) == 7
    freeze(perceptron, True)
    assert token_budget(perceptron, embedder, CPU) == ITEMS_AT_ONCE  # without a graph


def test_a_container_limits_the_memory(tmp_path, monkeypatch):
    (tmp_path / 'max').write_text('5000')
    (tmp_path / 'now').write_text('3000')
    monkeypatch.setattr(batch_size, 'CGROUPS', [(str(tmp_path / 'max'), str(tmp_path / 'now')), ('/none', '/none')])
    assert batch_size.available(CPU) == 2000
    (tmp_path / 'max').write_text('max')
    assert batch_size.available(CPU) > 10**6


def test_a_device_without_room(encoder, tokens, monkeypatch, caplog):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(batch_size, 'item_bytes', fail)
    task, embedders = Task({'model': encoder}, Objective()), {'model': FeatureEmbedder(encoder, tokens)}
    assert find_batch_size(task, Pairs(1000), embedders, CPU) == 8
    assert token_budget(encoder, embedders['model'], CPU) == 20
    assert 'Not even 4 of the longest examples' in caplog.text
