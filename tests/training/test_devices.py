"""The same trainings on every device that there is: on a machine with a GPU these tests also run there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import training
from finetuner.artifact import open_artifact

DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
PRECISIONS = {'cpu': ['fp32', 'bf16'], 'cuda': ['fp32', 'bf16', 'fp16']}


def weights(result) -> dict[str, np.ndarray]:
    return load_file(open_artifact(result.artifact).model_directory('model') / 'model.safetensors')


@pytest.fixture
def fit(word_model, train_csv, tmp_path):
    def run(name: str, **arguments):
        given = {'epochs': 2, 'batch_size': 24, 'learning_rate': 1e-3, 'loss': 'NTXentLoss', **arguments}
        return training.fit(str(word_model), train_csv, directory=tmp_path / name, **given)

    return run


@pytest.mark.parametrize(
    ('device', 'precision'), [(device, precision) for device in DEVICES for precision in PRECISIONS[device]]
)
@pytest.mark.parametrize('arguments', [{}, {'gradient_cache': True}, {'freeze': 2}, {'lora': True, 'output_dim': 8}])
def test_a_training_learns_in_every_precision(fit, device, precision, arguments):
    result = fit('run', device=device, precision=precision, **arguments)
    losses = [epoch['train_loss'] for epoch in result.history]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in weights(result).values())


if 'cuda' in DEVICES:

    @pytest.mark.parametrize('arguments', [{}, {'compile': True}, {'gradient_cache': True}, {'optimizer': 'LBFGS'}])
    def test_a_gpu_learns_what_a_cpu_does(fit, arguments):
        plain = {'optimizer': 'SGD', 'learning_rate': 1e-2, 'epochs': 1, **arguments}  # Adam would enlarge what is tiny
        expected = fit('cpu', device='cpu', **{**plain, 'compile': False})
        found = fit('cuda', device='cuda', **plain)
        assert found.history[0]['train_loss'] == pytest.approx(expected.history[0]['train_loss'], rel=0.05)
