"""Every test runs offline, without telemetry, and with a home and a config folder of its own."""

import os

os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['JINA_OPTOUT_TELEMETRY'] = '1'
os.environ.setdefault('OMP_NUM_THREADS', '2')

import pytest


@pytest.fixture(autouse=True)
def isolated_home(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith('FINETUNER_')] + ['JINA_AUTH_TOKEN']:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('FINETUNER_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('FINETUNER_CONFIG_DIR', str(tmp_path / 'config'))
