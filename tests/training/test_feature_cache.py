"""Cached features of frozen layers: the same losses and gradients as without, and nothing computed twice."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetuner.inference.clip import load_clip
from finetuner.inference.encoder import Encoder
from finetuner.inference.image_encoder import ImageEncoder
from finetuner.inference.mlp_encoder import MLPEncoder
from finetuner.inference.point_encoder import PointEncoder
from finetuner.inference.text_encoder import TextEncoder
from training.embed import FeatureEmbedder
from training.feature_cache import FeatureCache, weights_digest
from training.freezing import freeze, keep_frozen
from training.lora import LoRAOptions, add_adapters
from training.progress import Reporter
from training.rows import Rows, RowsWriter

CPU = torch.device('cpu')
TOLERANCE = 1e-5


class PixelPreprocessor:
    modality = 'image'
    digest = 'pixels'

    def collate(self, rows):
        return {'pixels': np.stack(rows)}


class Convolutions(Encoder):
    """A residual net: four groups, a pair of tensors between two of them."""

    modality = 'image'
    input_names = ['pixels']
    backbone_dim = 8

    def __init__(self):
        super().__init__(normalize=True)
        self.groups = nn.ModuleList([Block(3), Split(), Join(), Block(8)])
        self.register_buffer('mean', torch.tensor([10.0, 20.0, 30.0]))

    @property
    def preprocessor(self):
        return PixelPreprocessor()

    def pooled(self, pixels: Tensor) -> Tensor:
        hidden = (pixels.float() - self.mean).permute(0, 3, 1, 2) / 50
        for group in self.groups:
            hidden = group(hidden)
        return hidden.mean((2, 3))

    def layer_groups(self) -> list[nn.Module]:
        return list(self.groups)

    def save(self, directory):
        raise NotImplementedError


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.3)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.dropout(self.norm(self.conv(hidden)).relu())


class Split(Block):
    def __init__(self):
        super().__init__(8)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(hidden), hidden.mean((2, 3))


class Join(Block):
    def __init__(self):
        super().__init__(8)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return super().forward(pair[0]) * pair[1][:, :, None, None]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('FINETUNER_HOME', str(tmp_path / 'home'))
    return tmp_path / 'home'


@pytest.fixture
def tokens(tmp_path) -> Rows:
    chance = np.random.default_rng(0)
    with RowsWriter(tmp_path / 'tokens', np.int32) as writer:
        writer.append([chance.integers(5, 40, length) for length in (4, 9, 3, 12, 4, 7, 1, 20)])
    return Rows(tmp_path / 'tokens')


@pytest.fixture
def images(tmp_path) -> Rows:
    chance = np.random.default_rng(0)
    with RowsWriter(tmp_path / 'images', np.uint8, (6, 3)) as writer:
        writer.append([chance.integers(0, 256, (6, 6, 3), np.uint8) for _ in range(8)])
    return Rows(tmp_path / 'images')


def convolutions() -> Encoder:
    torch.manual_seed(0)
    encoder = Convolutions()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return encoder


def keys_of(features: Rows) -> np.ndarray:
    return np.arange(len(features), dtype=np.uint64) * 7


def open_cache(encoder: Encoder, features: Rows, keys: np.ndarray | None = None) -> FeatureCache | None:
    return FeatureCache.open_or_fill(encoder, features, keys_of(features) if keys is None else keys, CPU, Reporter())


def gradients(encoder: Encoder, embedder) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss over some items, one of them twice, and what it does to the weights. Dropout is off."""
    encoder.eval()
    encoder.zero_grad()
    embeddings = embedder.embed(np.array([3, 0, 7, 3, 5]), CPU)
    loss = (embeddings @ embeddings.T * torch.arange(25.0).view(5, 5)).tanh().sum() + embeddings[:, 0].sum()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def check_parity(encoder: Encoder, features: Rows) -> FeatureCache:
    """The cached and the plain path give one loss and one set of gradients, to an absolute 1e-5."""
    cache = open_cache(encoder, features)
    assert cache is not None
    (loss, found), (plain_loss, expected) = (
        gradients(encoder, embedder) for embedder in (cache, FeatureEmbedder(encoder, features))
    )
    torch.testing.assert_close(loss, plain_loss, rtol=TOLERANCE, atol=TOLERANCE)
    assert set(found) == set(expected) and expected
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
    return cache


@pytest.mark.parametrize('depth', [2, 3, True])
def test_texts_have_the_same_gradients(encoder, tokens, depth):
    if depth in (3, True):
        encoder.add_head(5)
    freeze(encoder, depth)
    cache = check_parity(encoder, tokens)
    tokenwise = depth == 2
    assert cache.costs(np.arange(8)).tolist() == (tokens.lengths(np.arange(8)).tolist() if tokenwise else [1] * 8)


@pytest.mark.parametrize('depth', [1, 2, 3, True])
def test_images_have_the_same_gradients(images, depth):
    encoder = convolutions()
    encoder.add_head(5)
    freeze(encoder, depth)
    check_parity(encoder, images)


def test_vectors_have_the_same_gradients(tmp_path):
    encoder = MLPEncoder(4, [6, 7, 5], activation='tanh')
    with RowsWriter(tmp_path / 'vectors', np.float32) as writer:
        writer.append(list(np.random.default_rng(0).random((8, 4), np.float32)))
    freeze(encoder, 2)
    check_parity(encoder, Rows(tmp_path / 'vectors'))


@pytest.mark.parametrize('library', ['tiny_clip', 'tiny_open_clip'])
@pytest.mark.parametrize('depth', [2, True])
def test_both_sides_of_a_clip_model(library, depth, request, tmp_path):
    encoders = load_clip(request.getfixturevalue(library))
    contents = {
        'clip-text': ['red apples', 'a pear', 'plums', 'red red red red', 'five', 'a plum, a pear', 'x', 'y z'],
        'clip-vision': list(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)),
    }
    for name, encoder in encoders.items():
        features = encoder.preprocessor.features(contents[name])
        with RowsWriter(tmp_path / name, features[0].dtype, features[0].shape[1:]) as writer:
            writer.append(features)
        encoder.add_head(5)
        freeze(encoder, depth)
        check_parity(encoder, Rows(tmp_path / name))


def test_models_of_other_libraries(images, tmp_path):
    torch.manual_seed(0)
    for name in ('squeezenet1_1', 'timm/vit_tiny_patch16_224'):
        encoder = ImageEncoder.load(name, pretrained=False, preprocess_options={'size': 32})
        with RowsWriter(tmp_path / 'small', np.uint8, (32, 3)) as writer:
            writer.append(list(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)))
        freeze(encoder, 3)
        check_parity(encoder, Rows(tmp_path / 'small'))


def test_clouds_of_points(tmp_path):
    encoder = PointEncoder(64, width=1 / 16)
    with RowsWriter(tmp_path / 'points', np.float32, (3,)) as writer:
        writer.append(list(np.random.default_rng(0).random((8, 64, 3), np.float32)))
    freeze(encoder, 2)
    check_parity(encoder, Rows(tmp_path / 'points'))


def test_texts_that_cannot_be_packed(tokens, word_model):
    """They are cached between layers too where the rest goes by hidden states alone."""
    encoder = TextEncoder.load(word_model)
    encoder.__class__ = type('Padded', (TextEncoder,), {'can_pack': False, 'can_split': False})
    freeze(encoder, 2)
    cache = check_parity(encoder, tokens)
    assert cache.costs(np.arange(8)).tolist() == tokens.lengths(np.arange(8)).tolist()


def test_adapters_above_the_frozen_layers(encoder, tokens):
    freeze(encoder, 2)
    add_adapters(encoder, LoRAOptions(r=2))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if 'lora_' in name:
                parameter.normal_(std=0.1)
    check_parity(encoder, tokens)


def test_dropout_above_the_cut_stays_on(images):
    encoder = convolutions()
    freeze(encoder, 2)
    encoder.train()
    keep_frozen(encoder)
    cache = open_cache(encoder, images)
    assert [group.training for group in encoder.groups] == [False, False, True, True]
    first, second = (cache.embed(np.arange(8), CPU) for _ in range(2))
    assert not torch.allclose(first, second)


def count_calls(encoder: Encoder) -> list[nn.Module]:
    called: list[nn.Module] = []
    for group in encoder.layer_groups():
        group.register_forward_hook(lambda module, *_: called.append(module))
    return called


def test_a_second_run_computes_nothing(images):
    encoder = convolutions()
    freeze(encoder, True)
    called = count_calls(encoder)
    first = open_cache(encoder, images)
    assert len(called) == 4 * 2  # one item for its size, then all
    again = convolutions()
    freeze(again, True)
    called = count_calls(again)
    second = open_cache(again, images)
    torch.testing.assert_close(first.embed(np.arange(8), CPU), second.embed(np.arange(8), CPU), rtol=0, atol=0)
    assert not called


def test_items_of_equal_keys_are_computed_once(tokens, encoder, home):
    freeze(encoder, True)
    keys = np.array([5, 9, 9, 5, 1, 2, 2, 2], np.uint64)
    same = tokens.select(np.array([0, 1, 1, 0, 4, 5, 5, 5]))
    cache = open_cache(encoder, same, keys)
    expected = FeatureEmbedder(encoder, same).embed(np.arange(8), CPU)
    torch.testing.assert_close(cache.embed(np.arange(8), CPU), expected, rtol=TOLERANCE, atol=TOLERANCE)
    (folder,) = (home / 'cache/features').iterdir()
    assert len(Rows(folder)) == 4
    # other examples of the same contents, in another order, find it
    other = open_cache(encoder, same.select(np.array([7, 0, 1, 4])), keys[[7, 0, 1, 4]])
    torch.testing.assert_close(other.embed(np.arange(4), CPU), expected[[7, 0, 1, 4]], rtol=TOLERANCE, atol=TOLERANCE)
    assert len(list((home / 'cache/features').iterdir())) == 1


def test_what_changes_the_values_changes_the_folder(images, tokens, encoder, home):
    def folders() -> int:
        return len(list((home / 'cache/features').glob('[!.]*')))

    model = convolutions()
    freeze(model, 2)
    open_cache(model, images)
    assert folders() == 1
    trained = copy.deepcopy(model)
    nn.init.ones_(trained.groups[3].conv.weight)  # behind the cut
    open_cache(trained, images)
    assert folders() == 1
    for number, change in enumerate(
        (
            lambda model: model.groups[0].conv.weight.data.add_(1e-3),
            lambda model: model.groups[1].norm.running_mean.add_(1e-3),
            lambda model: model.mean.add_(1),
            lambda model: freeze(model, 3),
            lambda model: setattr(model.groups[0].norm, 'eps', 0.1),
        ),
        2,
    ):
        other = copy.deepcopy(model)
        change(other)
        open_cache(other, images)
        assert folders() == number
    open_cache(model, images, keys_of(images) + 1)
    assert folders() == 7

    freeze(encoder, True)
    open_cache(encoder, tokens)
    encoder.pooling = 'max'
    open_cache(encoder, tokens)
    assert folders() == 9


def test_what_cannot_be_cached_is_not(images, tokens, encoder, caplog):
    caplog.set_level('INFO')
    freeze(encoder, 1)
    assert open_cache(encoder, tokens) is None  # embeddings are looked up anyway
    model = convolutions()
    assert open_cache(model, images) is None
    freeze(model, 1)
    model.augment = True
    assert open_cache(model, images) is None
    assert 'change at random' in caplog.text

    class Skips(Convolutions):
        def pooled(self, pixels: Tensor) -> Tensor:
            return super().pooled(pixels) + pixels.float().mean((1, 2, 3), keepdim=True)[:, 0, 0]

    model = Skips()
    freeze(model, 2)
    assert open_cache(model, images) is None
    assert 'does not go by its layer groups behind number 2' in caplog.text


def test_the_size_is_limited(images, home, monkeypatch, caplog):
    model = convolutions()
    freeze(model, 1)  # 8 channels x 36 x 4 bytes x 8 images
    root = home / 'cache/features'
    monkeypatch.setenv('FINETUNER_FEATURE_CACHE_BYTES', '9000')
    assert open_cache(model, images) is None
    assert 'FINETUNER_FEATURE_CACHE_BYTES allows 0.0 MB' in caplog.text
    assert not list(root.iterdir())

    monkeypatch.setenv('FINETUNER_FEATURE_CACHE_BYTES', '25000')
    one, two, three = (keys_of(images) + number for number in range(3))
    held = open_cache(model, images, one)
    (first,) = root.iterdir()
    open_cache(model, images, two)
    (second,) = set(root.iterdir()) - {first}
    os.utime(first, (0, 0))
    os.utime(second, (1, 1))
    open_cache(model, images, one)  # is used again
    open_cache(model, images, three)
    assert first.exists() and not second.exists() and len(list(root.iterdir())) == 2
    os.utime(first, (0, 0))
    open_cache(model, images, two)
    assert not first.exists()
    assert len(held.embed(np.arange(8), CPU)) == 8  # who has it open keeps it


def test_broken_files_are_made_anew(images, home):
    model = convolutions()
    freeze(model, True)
    expected = open_cache(model, images).embed(np.arange(8), CPU)
    (folder,) = (home / 'cache/features').iterdir()
    (folder / 'data.float32').write_bytes(b'1234')
    torch.testing.assert_close(open_cache(model, images).embed(np.arange(8), CPU), expected)


def test_the_key_knows_the_options_of_the_pooling():
    keys = set()
    for power in (2, 5):
        torch.manual_seed(0)
        options = {'pooling': 'gem', 'pooling_options': {'p': power}}
        encoder = ImageEncoder.load('timm/test_resnet', pretrained=False, **options)
        keys.add(weights_digest(encoder, [encoder.head]))
    assert len(keys) == 2
