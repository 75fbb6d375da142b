"""Linear layers on vectors that a user brings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetuner.excepts import DataError
from finetuner.inference.backbones import load_encoder
from finetuner.inference.mlp_encoder import MLPEncoder
from finetuner.inference.tensors import TensorPreprocessor


def embed(encoder, vectors):
    inputs = encoder.preprocessor.collate(encoder.preprocessor.features(vectors))
    with torch.no_grad():
        return encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()


@pytest.fixture
def vectors():
    return np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)


@pytest.mark.parametrize('activation', [None, 'relu', 'tanh', 'sigmoid'])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('l2', [True, False])
def test_embeddings_are_those_of_the_formula(vectors, activation, bias, l2):
    encoder = MLPEncoder(6, [5, 4, 3], bias=bias, activation=activation, l2=l2)
    functions = {'relu': lambda x: np.maximum(x, 0), 'tanh': np.tanh, 'sigmoid': lambda x: 1 / (1 + np.exp(-x))}
    expected = vectors
    for number, layer in enumerate(encoder.layers):
        expected = expected @ layer.linear.weight.detach().numpy().T
        assert (layer.linear.bias is not None) == bias
        if bias:
            expected = expected + layer.linear.bias.detach().numpy()
        if number < 2 and activation:
            expected = functions[activation](expected)
    if l2:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True).clip(1e-12)  # relu may leave nothing
    found = embed(encoder, vectors)
    assert (found.dtype, found.shape, encoder.dim) == (np.float32, (7, 3), 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'input_size': 0}, 'input_size 0'),
        ({'input_size': 6.5}, 'input_size 6.5'),
        ({'hidden_sizes': []}, 'hidden_sizes'),
        ({'hidden_sizes': [3, -1]}, 'hidden_sizes'),
        ({'activation': 'gelu'}, "unknown activation 'gelu': it is None or one of relu, tanh, sigmoid"),
        ({'activation': 'relu', 'hidden_sizes': [3]}, "activation 'relu' stands between layers"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MLPEncoder(**{'input_size': 6, 'hidden_sizes': [4, 3], **options})


def test_weights_start_at_random_by_the_seed(vectors):
    first, second, other = (embed(make(seed), vectors) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def make(seed):
    torch.manual_seed(seed)
    return MLPEncoder(6, [5, 3], activation='tanh')


@pytest.mark.parametrize('l2', [True, False])
@pytest.mark.parametrize('output_dim', [None, 2])
def test_a_saved_model_is_the_same(tmp_path, vectors, l2, output_dim):
    encoder = MLPEncoder(6, [5, 3], bias=False, activation='relu', l2=l2)
    if output_dim:
        encoder.add_head(output_dim)
    encoder.save(tmp_path / 'model')
    again = load_encoder(tmp_path / 'model')
    assert isinstance(again, MLPEncoder)
    assert not again.training
    assert np.array_equal(embed(again, vectors), embed(encoder, vectors))
    assert (again.dim, again.bias, again.activation, again.normalize) == (output_dim or 3, False, 'relu', l2)
    assert set(load_file(tmp_path / 'model' / 'model.safetensors')) == {'0.linear.weight', '1.linear.weight'}
    # without the head, its file is gone
    encoder.head = torch.nn.ModuleList()
    encoder.save(tmp_path / 'model')
    assert load_encoder(tmp_path / 'model').dim == 3


def test_a_damaged_description_is_refused(tmp_path):
    directory = MLPEncoder(6, [5, 3]).save(tmp_path / 'model')
    description = directory / 'encoder.json'
    for broken in ('"hidden_sizes"', '"input_size"', '"head"'):
        text = description.read_text()
        description.write_text(text.replace(broken, '"other"'))
        with pytest.raises(ValueError, match='encoder.json'):
            MLPEncoder.load(directory)
        description.write_text(text)


def test_layer_groups_are_the_layers_and_hold_all_weights():
    encoder = MLPEncoder(6, [5, 4, 3])
    encoder.add_head(2)
    groups = encoder.layer_groups()
    assert len(groups) == 3
    held = [id(weight) for group in groups for weight in group.parameters()]
    head = [id(weight) for weight in encoder.head.parameters()]
    assert sorted(held + head) == sorted(id(weight) for weight in encoder.parameters())


def test_features_are_float32_vectors():
    rows = TensorPreprocessor(3).features([[1, 2, 3], np.array([1.5, 0, -2], np.float64), (True, False, True)])
    assert all(row.dtype == np.float32 and row.shape == (3,) for row in rows)
    assert TensorPreprocessor(3).collate(rows)['tensor'].shape == (3, 3)


@pytest.mark.parametrize(
    ('vector', 'message'),
    [
        ([1, 2], 'item 1 has the shape 2: this model takes vectors of 3'),
        ([[1, 2, 3]], 'item 1 has the shape 1 × 3'),
        (4.0, 'item 1 has the shape one number'),
        ([1, np.nan, 3], 'item 1 has a value that is not finite'),
        (np.array([1, 2, 1e39]), 'item 1 has a value that is not finite'),
        (['a', 'b', 'c'], 'item 1 is not a vector of numbers but list'),
        ([[1], [2, 3]], 'item 1 is not a vector of numbers but list'),
        ('abc', 'item 1 is not a vector of numbers but str'),
        (None, 'item 1 is not a vector of numbers but NoneType'),
    ],
)
def test_what_is_no_vector_is_refused_by_its_position(vector, message):
    with pytest.raises(DataError, match=message):
        TensorPreprocessor(3).features([[0, 0, 0], vector])


def test_digests_tell_sizes_apart():
    assert TensorPreprocessor(3).digest == TensorPreprocessor(3).digest != TensorPreprocessor(4).digest
