"""Frozen layers: no gradients, no dropout, no running statistics; everything else learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finetuner.inference.encoder import Encoder
from finetuner.inference.mlp_encoder import MLPEncoder
from training.freezing import check_trainable, freeze, frozen_groups, keep_frozen
from training.losses.objective import Objective
from training.task import Task


class Blocks(Encoder):
    """Convolutions with batch normalization, and dropout before, in and after them."""

    modality = 'image'
    preprocessor = None
    input_names = ['pixels']
    backbone_dim = 6

    def __init__(self):
        super().__init__()
        self.before = nn.Dropout(0.5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)) for width in (3, 6, 6)
        )

    def pooled(self, pixels: Tensor) -> Tensor:
        hidden = self.before(pixels.permute(0, 3, 1, 2).float())
        for block in self.blocks:
            hidden = block(hidden)
        return hidden.mean((2, 3))

    def layer_groups(self) -> list[nn.Module]:
        return list(self.blocks)

    def save(self, directory):
        raise NotImplementedError


def train(encoder: nn.Module, inputs: dict[str, Tensor], steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        encoder.train()
        keep_frozen(encoder)
        encoder(**inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


PIXELS = {'pixels': torch.randint(0, 256, (8, 9, 9, 3), dtype=torch.uint8)}
TEXTS = {'input_ids': torch.randint(5, 20, (4, 7)), 'attention_mask': torch.ones(4, 7, dtype=torch.int64)}


@pytest.mark.parametrize('layers', [0, 1, 2, True])
def test_frozen_groups_are_bit_equal_after_training(layers):
    encoder = Blocks()
    encoder.add_head(4)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    freeze(encoder, layers)
    train(encoder, PIXELS)

    depth = 3 if layers is True else layers
    assert frozen_groups(encoder) == depth
    moved = changed(before, encoder)
    for number in range(3):
        own = {name for name in before if name.startswith(f'blocks.{number}.')}
        assert moved & own == (set() if number < depth else own)  # running statistics and their counter too
    assert any(name.startswith('head') for name in moved)


def test_frozen_layers_of_a_text_model_are_bit_equal(encoder):
    groups = len(encoder.layer_groups())
    freeze(encoder, groups - 1)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    train(encoder, TEXTS)
    moved = changed(before, encoder)
    assert moved
    assert all(f'layer.{groups - 2}.' in name for name in moved)  # the embeddings are a group


def test_dropout_below_the_cut_is_off():
    encoder = Blocks()
    freeze(encoder, 3)
    encoder.train()
    keep_frozen(encoder)
    assert encoder.training
    torch.testing.assert_close(encoder(**PIXELS), encoder(**PIXELS), rtol=0, atol=0)

    encoder = Blocks()
    freeze(encoder, 2)
    encoder.train()
    keep_frozen(encoder)
    assert [block.training for block in encoder.blocks] == [False, False, True]
    assert not encoder.before.training and encoder.blocks[2][3].training


def test_all_of_a_text_model_is_silent_when_frozen(encoder):
    freeze(encoder, True)
    encoder.train()
    keep_frozen(encoder)
    torch.testing.assert_close(encoder(**TEXTS), encoder(**TEXTS), rtol=0, atol=0)


def test_more_groups_than_there_are():
    with pytest.raises(ValueError, match='freeze is 3, but the model has 2 groups'):
        freeze(MLPEncoder(4, [5, 6]), 3)


class Proxies(Objective):
    shape = 'labelled'

    def __init__(self, weights: int = 0):
        super().__init__()
        if weights:
            self.proxies = nn.Parameter(torch.zeros(weights))


def test_nothing_to_learn_is_refused(caplog):
    frozen = MLPEncoder(4, [5, 6])
    freeze(frozen, True)
    with pytest.raises(ValueError, match='freeze leaves nothing to train: give output_dim'):
        check_trainable(Task({'model': frozen}, Proxies()))
    check_trainable(Task({'model': frozen}, Proxies(weights=2)))
    assert 'only weights of the loss are trained' in caplog.text
    frozen.add_head(3)
    check_trainable(Task({'model': frozen}, Proxies()))
