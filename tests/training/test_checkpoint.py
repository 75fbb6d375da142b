"""Files of weights and of whole trainings."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from training import checkpoint
from training.checkpoint import read_tensors, restore_weights, weights, write_tensors


class Module(nn.Module):
    """A tied weight, a frozen one, a buffer that is kept and one that is not."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.frozen.requires_grad_(False)
        self.register_buffer('steps', torch.tensor(0))
        self.register_buffer('scratch', torch.zeros(2), persistent=False)


def test_weights_are_what_a_training_changes():
    assert set(weights(Module())) == {'one.weight', 'one.bias', 'two.bias', 'steps'}


def test_weights_come_back_in_place(tmp_path):
    first, second = Module(), Module()
    parameter = second.one.weight
    write_tensors(tmp_path / 'new' / 'weights.safetensors', weights(first), {'epoch': '3'})
    restore_weights(second, read_tensors(tmp_path / 'new' / 'weights.safetensors'))
    assert second.one.weight is parameter
    assert torch.equal(first.one.weight, second.two.weight)
    assert not torch.equal(first.frozen.weight, second.frozen.weight)


def test_weights_of_another_model_are_refused(tmp_path):
    other = nn.Linear(3, 3)
    with pytest.raises(ValueError, match='of another model or training: bias'):
        restore_weights(other, weights(Module()))
    with pytest.raises(ValueError, match=r'weight has the shape \[3, 3\], not \[4, 3\]'):
        restore_weights(nn.Linear(3, 4), weights(other))


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / 'weights.safetensors'
    write_tensors(path, {'a': torch.ones(3)})

    def broken(tensors, file, metadata):
        file.write_bytes(b'half of it')
        raise OSError('the disk is full')

    monkeypatch.setattr(checkpoint, 'save_file', broken)
    with pytest.raises(OSError, match='full'):
        write_tensors(path, {'a': torch.zeros(3)})
    assert torch.equal(read_tensors(path)['a'], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ['weights.safetensors']
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match='weights.safetensors is damaged'):
        read_tensors(path)


def test_tensors_that_share_memory_are_written(tmp_path):
    base = torch.arange(12.0)
    write_tensors(tmp_path / 'x', {'all': base, 'part': base[3:6], 'turned': base.view(3, 4).T})
    found = read_tensors(tmp_path / 'x')
    assert torch.equal(found['part'], base[3:6]) and torch.equal(found['turned'], base.view(3, 4).T)


def test_values_of_all_kinds_survive_json():
    value = {
        'state': {0: {'step': torch.tensor(3.0), 'exp_avg': torch.randn(2, 3, dtype=torch.bfloat16)}, 7: {}},
        'param_groups': [
            {'lr': 1e-300 / 3, 'betas': (0.9, 0.999), 'params': [0, 7], 'fused': None, 'capturable': False}
        ],
        'numbers': [math.inf, -math.inf, np.float64(0.1), np.int64(5), 2**70],
        'array': np.arange(3, dtype=np.uint32),
        ('a', 1): 'text',
    }
    tensors = {}
    found = checkpoint._unpack(json.loads(json.dumps(checkpoint._pack(value, tensors, 'x'))), tensors)
    assert found['param_groups'] == value['param_groups'] and found['numbers'] == value['numbers']
    assert isinstance(found['param_groups'][0]['betas'], tuple)
    assert list(found['state']) == [0, 7] and found['state'][0]['exp_avg'].dtype == torch.bfloat16
    assert torch.equal(found['state'][0]['exp_avg'], value['state'][0]['exp_avg'])
    assert found['array'].dtype == np.uint32 and found['array'].tolist() == [0, 1, 2]
    assert found['a', 1] == 'text'
    with pytest.raises(TypeError, match='callbacks holds a set'):
        checkpoint._pack({'seen': {1}}, {}, 'callbacks')


def test_random_numbers_go_on_where_they_were(tmp_path):
    tensors = {}
    packed = json.loads(json.dumps(checkpoint._pack(checkpoint._random_state(), tensors, 'random')))
    write_tensors(tmp_path / 'x', tensors)
    drawn = random.random(), np.random.rand(), torch.rand(2).tolist()
    checkpoint._restore_random_state(checkpoint._unpack(packed, read_tensors(tmp_path / 'x')))
    assert (random.random(), np.random.rand(), torch.rand(2).tolist()) == drawn
