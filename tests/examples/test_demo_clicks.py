"""The demo of clicks, as a user runs it, but shorter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_prints_what_the_model_has_gained(tmp_path):
    shutil.copytree(ROOT / 'examples', tmp_path / 'examples')  # what it leaves is beside its files
    command = [sys.executable, '-W', 'ignore', '-m', 'examples.demo_clicks', '--sessions', '1000', '--iterations', '1']
    environment = {**os.environ, 'HF_HUB_OFFLINE': '1'}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert 'Promoted to shop@production: ndcg_at_10 of' in done.stdout
    [gain] = [line for line in done.stdout.splitlines() if 'nDCG@10' in line]
    before, after, difference = (float(cell.split()[0]) for cell in gain.strip('│ ').split('│')[1:4])
    assert 0 < before < after and difference == pytest.approx(after - before, abs=2e-3)
    assert 'Control: 1000 sessions' in done.stdout and 'Not promoted:' in done.stdout
