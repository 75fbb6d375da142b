"""Several processes train as one does: the same losses, and the same weights but for the order of sums."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from finetuner.artifact import open_artifact

ARGUMENTS = ['--epochs', '2', '--batch-size', '24', '--learning-rate', '1e-3', '--device', 'cpu']


def run(launcher, directory, data, model, *options):
    command = [sys.executable, *launcher, 'training', 'fit', data, '--model', model, '--directory', directory]
    command += [*ARGUMENTS, *options, '--run-name', 'run']
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    return open_artifact(directory / 'run.zip'), done.stderr


def weights(artifact):
    return load_file(artifact.model_directory('model') / 'model.safetensors')


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        ['--loss', 'NTXentLoss'],
        ['--loss', 'ArcFaceLoss', '--options', '{"gradient_accumulation_steps": 2, "max_grad_norm": 1.0}'],
    ],
    ids=['contrastive', 'class weights, accumulation, clipping'],
)
def test_two_processes_train_as_one_does(word_model, train_csv, tmp_path, options):
    without_dropout = tmp_path / 'model'
    copy_without_dropout(word_model, without_dropout)
    two = ['-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-port', '0', '--rdzv-backend', 'c10d']
    two += ['--rdzv-endpoint', 'localhost:0', '-m']
    together, log = run(two, tmp_path / 'two', train_csv, without_dropout, *options)
    assert 'on 2 processes' in log
    alone, _ = run(['-m'], tmp_path / 'one', train_csv, without_dropout, *options)
    start, found, expected = load_file(without_dropout / 'model.safetensors'), weights(together), weights(alone)
    moved = max(np.abs(expected[name] - start[name]).max() for name in expected)
    apart = max(np.abs(found[name] - expected[name]).max() for name in expected)
    assert moved > 1e-3
    assert apart < 1e-2 * moved


def copy_without_dropout(source, target):
    """Dropout draws other numbers in each process."""
    shutil.copytree(source, target)
    config = json.loads((target / 'config.json').read_text())
    config |= {'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0}
    (target / 'config.json').write_text(json.dumps(config))


@pytest.mark.slow
def test_a_frozen_encoder_trains_weights_of_classes_on_two_processes(word_model, train_csv, tmp_path):
    two = ['-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-port', '0', '--rdzv-backend', 'c10d']
    two += ['--rdzv-endpoint', 'localhost:0', '-m']
    artifact, _ = run(two, tmp_path / 'two', train_csv, word_model, '--loss', 'ArcFaceLoss', '--freeze')
    start = load_file(word_model / 'model.safetensors')
    assert all((start[name] == value).all() for name, value in weights(artifact).items())
