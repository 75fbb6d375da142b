"""Texts and images in one space: a whole run on pairs, and what can be done with its artifact."""

from __future__ import annotations

import csv

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image

import finetuner
import training
from finetuner.artifact import open_artifact
from finetuner.callback import EvaluationCallback
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import SelectModelRequired
from finetuner.inference.backbones import load_encoders
from training import embed
from training.rows import Rows, RowsWriter

COLOURS = {'red': (220, 30, 30), 'green': (30, 200, 40), 'blue': (40, 40, 210), 'grey': (120, 120, 120)}


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    """A CSV file of 48 pairs: a text that names a colour, and the path of an image that shows it."""
    folder = tmp_path_factory.mktemp('pairs')
    chance = np.random.default_rng(0)
    with (folder / 'pairs.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['text', 'image'])
        for number in range(48):
            name = list(COLOURS)[number % 4]
            pixels = np.array(COLOURS[name]) + chance.integers(-30, 30, (40, 36, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f'{number}.png')
            writer.writerow([f'a {name} thing', f'{number}.png'])
    return folder / 'pairs.csv'


@pytest.fixture(scope='module')
def result(pairs, tiny_open_clip, tmp_path_factory):
    return training.fit(
        str(tiny_open_clip),
        pairs,
        directory=tmp_path_factory.mktemp('run') / 'colours',
        loss='CLIPLoss',
        sampler='random',
        callbacks=[EvaluationCallback(str(pairs), model='clip-text', index_model='clip-vision', limit=5)],
        learning_rate=2e-3,
        epochs=8,
        batch_size=16,
        device='cpu',
    )


def test_texts_find_the_images_that_they_describe(result):
    (name,) = [name for name in result.metrics['after'] if name.endswith('precision_at_k')]
    assert result.metrics['before'][name] < 0.6
    assert result.metrics['after'][name] > 0.9


def test_the_artifact_has_two_models_and_their_weights_once(result):
    opened = open_artifact(result.artifact)
    assert {name: (info.modality, info.task, info.dim) for name, info in opened.models.items()} == {
        'clip-text': ('text', 'text-to-image', 32),
        'clip-vision': ('image', 'text-to-image', 32),
    }
    assert opened.models['clip-text'].max_length == 16
    assert opened.models['clip-vision'].max_length is None
    weights = [path for path in opened.metadata['files'] if path.endswith('.safetensors')]
    assert weights == ['models/clip/open_clip_model.safetensors']
    assert yaml.safe_load((opened.directory / 'config.yml').read_text())['loss'] == 'CLIPLoss'


def test_each_encoder_learns_at_its_own_rate(pairs, tiny_open_clip, tmp_path):
    still = training.fit(
        str(tiny_open_clip),
        pairs,
        directory=tmp_path / 'still',
        loss='CLIPLoss',
        sampler='random',
        learning_rate=2e-3,
        optimizer_options={'clip-vision': {'lr': 0.0}},
        epochs=1,
        batch_size=16,
        device='cpu',
    )
    before = load_encoders(tiny_open_clip)
    after = load_encoders(open_artifact(still.artifact).directory / 'models')
    changed = {
        name: any(
            (one != two).any() for one, two in zip(before[name].parameters(), after[name].parameters(), strict=True)
        )
        for name in before
    }
    assert changed == {'clip-text': True, 'clip-vision': False}


def test_a_model_must_be_selected(result):
    with pytest.raises(SelectModelRequired, match='set select_model to one of clip-text, clip-vision'):
        finetuner.get_model(result.artifact)
    with pytest.raises(ValueError, match="no model 'clip-audio'"):
        finetuner.get_model(result.artifact, select_model='clip-audio')


def test_both_engines_embed_texts_and_images_in_one_space(result, pairs):
    photos = [str(pairs.parent / f'{number}.png') for number in range(4)]
    texts = [f'a {name} thing' for name in COLOURS]
    found = {}
    for is_onnx in (True, False):
        text, vision = (
            finetuner.get_model(result.artifact, select_model=name, is_onnx=is_onnx)
            for name in ('clip-text', 'clip-vision')
        )
        documents = finetuner.encode(vision, DocumentArray([Document(uri=photo) for photo in photos]))
        found[is_onnx] = finetuner.encode(text, texts), np.stack([document.embedding for document in documents])
    for with_onnx, with_torch in zip(found[True], found[False], strict=True):
        np.testing.assert_allclose(with_onnx, with_torch, atol=1e-4)
    one, two = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in found[True])
    assert list((one @ two.T).argmax(1)) == [0, 1, 2, 3]


def test_one_model_of_the_unpacked_artifact_can_be_used_alone(result):
    directory = open_artifact(result.artifact).model_directory('clip-text')
    for is_onnx in (True, False):
        assert finetuner.get_model(directory, is_onnx=is_onnx).dim == 32


def test_open_clip_opens_what_was_trained(result, tiny_open_clip):
    models = open_artifact(result.artifact).directory / 'models'
    model = open_clip.create_model(f'local-dir:{models / "clip"}').eval()
    tokens = open_clip.get_tokenizer(f'local-dir:{models / "clip"}')(['a red thing'])
    ours = finetuner.encode(finetuner.get_model(models / 'clip-text'), ['a red thing'])
    np.testing.assert_allclose(model.encode_text(tokens).detach().numpy(), ours, atol=1e-4)
    before = open_clip.create_model(f'local-dir:{tiny_open_clip}').eval()
    assert np.abs(before.encode_text(tokens).detach().numpy() - ours).max() > 1e-3


def test_a_run_can_go_on_from_it(result):
    encoders = load_encoders(open_artifact(result.artifact).directory / 'models')
    assert set(encoders) == {'clip-text', 'clip-vision'}


def test_texts_of_unequal_length_compute_little_padding(tiny_open_clip, tmp_path, monkeypatch):
    monkeypatch.setitem(embed.CHUNK_COST, 'cpu', 1)
    encoder = load_encoders(tiny_open_clip)['clip-text']
    texts = ['red', 'a', 'blue', 'grey'] * 4 + ['a text with a few more words than the others have']
    with RowsWriter(tmp_path / 'rows', np.int32, ()) as writer:
        writer.append(encoder.preprocessor.features(texts))
    rows, items = Rows(tmp_path / 'rows'), np.arange(len(texts))
    with torch.no_grad():
        expected = embed.run(encoder, rows.take(items), torch.device('cpu'))
        shapes = []
        encoder.tower.register_forward_pre_hook(lambda tower, inputs: shapes.append(tuple(inputs[0].shape)))
        found = embed.FeatureEmbedder(encoder, rows).embed(items, torch.device('cpu'))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert shapes == [(16, 3), (1, 13)]
