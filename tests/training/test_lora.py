"""Low-rank adapters in all kinds of backbones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetuner.inference.clip import load_clip, save_clip
from finetuner.inference.encoder import Encoder
from finetuner.inference.image_encoder import ImageEncoder
from finetuner.inference.mlp_encoder import MLPEncoder
from training.freezing import freeze, frozen_groups, keep_frozen
from training.lora import LoRAOptions, add_adapters, merge_adapters


class Tiny(Encoder):
    """Whatever blocks are given, one after the other, on [B, 16, 6]."""

    modality = 'image'
    preprocessor = None
    input_names = ['pixels']
    backbone_dim = 6

    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def pooled(self, pixels: Tensor) -> Tensor:
        for block in self.blocks:
            pixels = block(pixels)
        return pixels.mean(1)

    def layer_groups(self) -> list[nn.Module]:
        return list(self.blocks)

    def save(self, directory):
        raise NotImplementedError


class Attention(nn.Module):
    """As torchvision's and open_clip's transformers have it."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        return hidden + self.mlp(hidden)


class Convolution(nn.Module):
    def __init__(self, depthwise: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.BatchNorm2d(6)
        self.squeeze = nn.Linear(6, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        image = hidden.transpose(1, 2).unflatten(2, (4, 4))
        image = self.norm(self.depthwise(self.conv(image)))
        hidden = image.flatten(2).transpose(1, 2)
        return hidden * self.squeeze(hidden).sigmoid()


def tiny(kind: str, text: Encoder) -> tuple[Encoder, dict[str, Tensor]]:
    torch.manual_seed(0)
    pixels = {'pixels': torch.randn(5, 16, 6)}
    if kind == 'text':
        mask = torch.ones(4, 7, dtype=torch.int64)
        mask[1, 3:] = 0
        return text, {'input_ids': torch.randint(5, 20, (4, 7)), 'attention_mask': mask}
    if kind == 'attention':
        return Tiny(Attention(), Attention()), pixels
    if kind == 'convolution':
        return Tiny(Convolution(), Convolution()), pixels
    return MLPEncoder(6, [8, 8, 5], activation='relu'), {'tensor': torch.randn(5, 6)}


KINDS = ['text', 'attention', 'convolution', 'mlp']


def train(encoder: Encoder, inputs: dict[str, Tensor]) -> None:
    optimizer = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=0.02)
    for _ in range(4):
        encoder.train()
        keep_frozen(encoder)
        encoder(**inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    encoder.eval()


@pytest.mark.parametrize('kind', KINDS)
def test_only_adapters_and_head_learn_and_merging_gives_the_plain_model(encoder, kind):
    model, inputs = tiny(kind, encoder)
    model.add_head(3)
    model.eval()
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    structure = [(name, type(module)) for name, module in model.named_modules()]
    before = model(**inputs)

    add_adapters(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all('lora_' in name or name.startswith('head.') for name in trained)
    torch.testing.assert_close(model(**inputs), before)  # they begin at zero
    train(model, inputs)
    after = model(**inputs)
    assert not torch.allclose(after, before, atol=1e-3)

    merge_adapters(model)
    assert [(name, type(module)) for name, module in model.named_modules()] == structure
    assert set(model.state_dict()) == set(plain)
    torch.testing.assert_close(model(**inputs), after, rtol=1e-5, atol=1e-5)
    moved = {name for name, value in model.state_dict().items() if not torch.allclose(plain[name], value, atol=1e-5)}
    assert all(name.endswith('weight') or name.startswith('head.') for name in moved)  # no bias, no statistics
    merge_adapters(model)  # nothing is left to merge


@pytest.mark.parametrize('library', ['tiny_clip', 'tiny_open_clip'])
def test_adapters_in_both_sides_of_a_clip_model(library, request, tmp_path):
    encoders = load_clip(request.getfixturevalue(library))
    inputs = {
        'clip-text': encoders['clip-text'].preprocessor.collate(
            encoders['clip-text'].preprocessor.features(['red', 'a pear', 'plums'])
        ),
        'clip-vision': {'pixels': np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)},
    }
    tuned = {}
    for name, encoder in encoders.items():
        given = {key: torch.from_numpy(value) for key, value in inputs[name].items() if key in encoder.input_names}
        before, names = encoder(**given), set(encoder.state_dict())
        add_adapters(encoder)
        assert len(adapters(encoder)) > 8
        train(encoder, given)
        tuned[name] = given, encoder(**given)
        assert not torch.allclose(tuned[name][1], before, atol=1e-3)
        merge_adapters(encoder)
        assert set(encoder.state_dict()) == names
        torch.testing.assert_close(encoder(**given), tuned[name][1], rtol=1e-4, atol=1e-5)
    # what is saved is the whole model of the library, with the merged weights
    save_clip(encoders, tmp_path)
    for name, encoder in load_clip(tmp_path).items():
        given, after = tuned[name]
        torch.testing.assert_close(encoder(**given), after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['squeezenet1_1', 'timm/convnext_atto'])
def test_adapters_in_models_of_image_libraries(name):
    torch.manual_seed(0)
    encoder = ImageEncoder.load(name, pretrained=False, preprocess_options={'size': 32})
    given = {'pixels': torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)}
    before, names = encoder(**given), set(encoder.state_dict())
    add_adapters(encoder)
    train(encoder, given)
    after = encoder(**given)
    assert not torch.allclose(after, before, atol=1e-3)
    merge_adapters(encoder)
    assert set(encoder.state_dict()) == names
    torch.testing.assert_close(encoder(**given), after, rtol=1e-4, atol=1e-4)


def test_every_adapter_gets_gradients(encoder):
    for kind in KINDS:
        model, inputs = tiny(kind, encoder)
        add_adapters(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if 'lora_B' in name:
                    parameter.fill_(0.01)
        model(**inputs).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapters(model).values()), kind


def adapters(model: Encoder) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if 'lora_' in name}


def test_which_layers_get_one(encoder):
    def targets(model: Encoder, **options) -> set[str]:
        model = copy.deepcopy(model)
        add_adapters(model, LoRAOptions(**options))
        return {name.partition('.lora_')[0].removesuffix('.base_layer') for name in adapters(model)}

    text = targets(encoder)
    assert len(text) == 12  # query, key, value, output and both of the MLP, in 2 layers
    assert not any('embeddings' in name or 'pooler' in name for name in text)
    assert {name.rpartition('.')[2] for name in targets(encoder, target_modules=['query', 'value'])} == {
        'query',
        'value',
    }
    assert all('layer.1.' in name for name in targets(encoder, layers=1))
    freeze(encoder, 2)
    assert all('layer.1.' in name for name in targets(encoder))
    assert frozen_groups(encoder) == 2

    convolution = targets(tiny('convolution', encoder)[0])
    assert convolution == {f'blocks.{n}.{name}' for n in (0, 1) for name in ('conv', 'squeeze')}
    with pytest.raises(ValueError, match=r"none of target_modules \['queri'\] .* they have dense, key, query, value"):
        add_adapters(encoder, LoRAOptions(target_modules=['queri']))


def test_options_do_what_they_say(encoder):
    model = copy.deepcopy(encoder)
    add_adapters(model, LoRAOptions(r=3, alpha=6, dropout=0.25, target_modules=['query'], layers=1))
    assert {tuple(parameter.shape) for parameter in adapters(model).values()} == {(3, 32), (32, 3)}
    layer = model.backbone.encoder.layer[1].attention.self.query
    assert layer.scaling == {'default': 2.0}
    assert layer.lora_dropout['default'].p == 0.25


def test_all_frozen_groups_leave_nothing_to_adapt():
    model = MLPEncoder(6, [8, 5])
    freeze(model, 2)
    with pytest.raises(ValueError, match='none is in the layers that are trained; they have none to adapt'):
        add_adapters(model)


def test_packed_texts_pass_through_adapters(encoder):
    add_adapters(encoder)
    with torch.no_grad():
        for parameter in adapters(encoder).values():
            parameter.normal_(std=0.3)
    ids, lengths = torch.randint(5, 20, (12,)), torch.tensor([3, 7, 2])
    packed = encoder.packed(ids, lengths)
    for row, text in zip(packed, ids.split(lengths.tolist()), strict=True):
        plain = encoder(input_ids=text[None], attention_mask=torch.ones_like(text[None]))[0]
        torch.testing.assert_close(row, plain, rtol=1e-5, atol=1e-5)
