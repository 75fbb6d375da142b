"""Layers that lie as the processor reads them: the same embeddings, and only where it pays."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers.activations import ClippedGELUActivation, GELUActivation

from finetuner.inference import load_engine, prepacking
from finetuner.inference.backbones import load_encoder
from finetuner.inference.prepacking import PrepackedLinear, prepack
from finetuner.inference.torch_engine import TorchInferenceEngine

TEXTS = ['lost card', 'where is my money', '', 'refund ' * 20]


@pytest.fixture
def always(monkeypatch):
    """Layers are prepacked however long they take."""
    monkeypatch.setattr(prepacking, '_WORTH', 0.0)


def linear_layers(engine):
    return {type(module) for module in engine.encoder.modules() if isinstance(module, nn.Linear | PrepackedLinear)}


def bf16():
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return pytest.param('bf16', marks=pytest.mark.skipif(not has_bf16, reason='oneDNN has no bf16 on this processor'))


@pytest.mark.parametrize('precision', ['fp32', bf16()])
def test_embeddings_stay_as_they_are(tiny_model, always, precision):
    plain = TorchInferenceEngine(load_encoder(tiny_model), precision=precision)
    packed = load_engine(tiny_model, is_onnx=False, precision=precision)
    assert linear_layers(packed) == {PrepackedLinear} and linear_layers(plain) == {nn.Linear}
    tolerance = 1e-5 if precision == 'fp32' else 0.05
    np.testing.assert_allclose(packed.encode_texts(TEXTS), plain.encode_texts(TEXTS), atol=tolerance)
    np.testing.assert_allclose(packed.encode_texts(TEXTS[:1]), plain.encode_texts(TEXTS[:1]), atol=tolerance)


def test_a_single_text_has_one_of_few_numbers_of_tokens(tiny_model, always):
    engine = load_engine(tiny_model, is_onnx=False)
    seen = set()
    for module in engine.encoder.modules():
        if isinstance(module, PrepackedLinear):
            module.register_forward_hook(lambda _, inputs, __: seen.add(tuple(inputs[0].shape[:-1])))
    features = engine.features(['lost ' * words for words in range(1, 14)], 0, None, str)
    for row in features:
        engine.embed([row])
    assert len({len(row) for row in features}) > 8
    assert seen - {(1,)} <= {(1, 8), (1, 16), (1, 24)}  # the head has one vector of each text
    assert engine.computed([features[0]]) == 8


GROWTH = """
import ctypes, random, sys
import psutil, torch
from torch import nn
from finetuner.inference.prepacking import PrepackedLinear

layers = [PrepackedLinear(nn.Linear(256, 1024), ('gelu', 'none')), PrepackedLinear(nn.Linear(1024, 256))]
chooser = random.Random(0)
def run(batches):
    with torch.inference_mode():
        for _ in range(batches):
            inputs = torch.rand(chooser.randrange(1, 3000), 256)
            layers[1](layers[0](inputs))
    ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss / 2**20
before = run(100)
print(run(250) - before)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='torch without oneDNN')
def test_batches_of_ever_new_sizes_take_no_more_memory():
    grown = subprocess.run(
        [sys.executable, '-c', GROWTH], check=True, capture_output=True, text=True, env=without_caps()
    )
    assert float(grown.stdout) < 20


def without_caps():
    """What the module sets itself, and hands on to the processes that are started here."""
    ours = ('ONEDNN_PRIMITIVE_CACHE_CAPACITY', 'LRU_CACHE_CAPACITY')
    return {name: value for name, value in os.environ.items() if name not in ours}


def test_an_activation_is_computed_with_the_layer_before_it(tiny_model, always):
    engine = load_engine(tiny_model, is_onnx=False)
    fused = [module for module in engine.encoder.modules() if getattr(module, 'activation', None) == ('gelu', 'none')]
    assert len(fused) == 2
    assert not any(isinstance(module, GELUActivation) for module in engine.encoder.modules())


def test_what_is_no_faster_stays_as_it_is(tiny_model, monkeypatch):
    monkeypatch.setattr(prepacking, '_WORTH', float('inf'))
    engine = load_engine(tiny_model, is_onnx=False)
    assert linear_layers(engine) == {nn.Linear}
    assert np.isfinite(engine.encode_texts(TEXTS)).all()


def test_an_encoder_of_somebody_else_stays_as_it_is(tiny_model, always):
    encoder = load_encoder(tiny_model)
    assert linear_layers(load_engine(encoder)) == {nn.Linear}


def embedding(model):
    """Has the model compute one batch, the same one each time."""
    inputs = torch.randn(3, 4)

    def embed():
        with torch.inference_mode():
            return model(inputs).numpy()

    return embed


class Direct(nn.Module):
    """Reads the weights of its layer by itself, as some attention does."""

    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, inputs):
        return self.other(nn.functional.linear(inputs, self.layer.weight))


class Wrong(nn.Module):
    """Does something else with a layer that is none of torch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs):
        return self.layer(inputs) if type(self.layer) is nn.Linear else inputs


@pytest.mark.parametrize('make', [Direct, Wrong])
def test_what_cannot_be_prepacked_stays_as_it_is(make, always):
    model = make().eval()
    embed = embedding(model)
    before = embed()
    assert not prepack(model, embed)
    np.testing.assert_array_equal(embed(), before)
    assert type(model.layer) is nn.Linear


def test_a_layer_that_stands_in_two_places_is_prepacked_once(always):
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    embed = embedding(model)
    before = embed()
    assert prepack(model, embed)
    assert model[0] is model[2] and isinstance(model[0], PrepackedLinear)
    np.testing.assert_allclose(embed(), before, atol=1e-6)


class Normed(nn.Module):
    """Has something between a layer and the activation, which the definition does not show."""

    def __init__(self):
        super().__init__()
        self.layer, self.activation, self.norm = nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4)

    def forward(self, inputs):
        return self.activation(self.norm(self.layer(inputs)))


class Backwards(nn.Module):
    """Defines its activation before the layer whose output it gets."""

    def __init__(self, activation):
        super().__init__()
        self.activation, self.first, self.second = activation, nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, inputs):
        return self.second(self.activation(self.first(inputs)))


@pytest.mark.parametrize(
    'model, fused',
    [
        (Backwards(nn.GELU()), ['gelu', 'none']),
        (Backwards(nn.GELU('tanh')), ['gelu', 'none']),
        (Backwards(nn.ReLU()), ['relu', 'none']),
        (Backwards(nn.SiLU()), ['none', 'none']),
        (Backwards(nn.ReLU6()), ['none', 'none']),
        (Backwards(nn.Softmax(dim=1)), ['none', 'none']),
        (Backwards(ClippedGELUActivation(-10, 10)), ['none', 'none']),
        (
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 4)),
            ['relu', 'gelu', 'none'],
        ),
        (Normed(), ['none']),
    ],
)
def test_what_is_fused_computes_the_same(model, fused, always):
    embed = embedding(model)
    before = embed()
    assert prepack(model, embed)
    assert [module.activation[0] for module in model.modules() if isinstance(module, PrepackedLinear)] == fused
    np.testing.assert_allclose(embed(), before, atol=1e-6)
