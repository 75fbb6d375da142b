from __future__ import annotations

import subprocess
import sys

from tests.training.conftest import write_csv


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'training', 'fit', *arguments], capture_output=True, text=True, env=None
    )


def test_fit_from_csv_to_artifact(word_model, tmp_path):
    train, test = write_csv(tmp_path / 'train.csv', 60, seed=1), write_csv(tmp_path / 'test.csv', 12, seed=2)
    target = tmp_path / 'out'
    result = run(
        str(train),
        *('--eval-data', str(test), '--model', str(word_model), '--directory', str(target), '--run-name', 'desk'),
        *('--epochs', '1', '--batch-size', '16', '--device', 'cpu', '--options', '{"scheduler": "linear"}'),
    )
    assert result.returncode == 0, result.stderr
    assert (target / 'desk.zip').is_file()
    assert 'average_precision' in result.stdout
    assert 'Training' in result.stdout
    assert f'finetuner serve {target / "desk.zip"}' in result.stdout
    assert 'Training data: 60 items of 6 classes' in result.stderr


def test_an_error_is_one_sentence(tmp_path):
    result = run(str(tmp_path / 'none.csv'))
    assert result.returncode == 1
    assert result.stderr.startswith('the file ')
    assert 'Traceback' not in result.stderr
    result = run(str(tmp_path / 'none.csv'), '--loss-options', '{margin}')
    assert (result.returncode, result.stderr.count('\n')) == (1, 1)
    assert '--loss-options is not JSON' in result.stderr
    result = run(str(tmp_path / 'none.csv'), '--csv-options', '{"sise": 3}')
    assert (result.returncode, result.stderr.strip()) == (
        1,
        "csv_options: unknown option 'sise': did you mean size or seed?",
    )
