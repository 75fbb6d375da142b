"""Every executor has a manifest, by which Jina finds its class from any folder."""

from pathlib import Path

import pytest
import yaml
from jina import Executor

from executors.clicks import ClickstreamExecutor
from executors.dataset import DatasetExecutor
from executors.encoder import FinetunerExecutor
from executors.search import SearchExecutor
from executors.trainer import TrainerExecutor

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / 'executors' / 'manifests'


@pytest.mark.parametrize(
    ('path', 'cls'),
    [
        (MANIFESTS / 'dataset.yml', DatasetExecutor),
        (MANIFESTS / 'clicks.yml', ClickstreamExecutor),
        (MANIFESTS / 'trainer.yml', TrainerExecutor),
        (MANIFESTS / 'search.yml', SearchExecutor),
        (MANIFESTS / 'encoder.yml', FinetunerExecutor),
        (ROOT / 'config.yml', FinetunerExecutor),
    ],
)
def test_manifest(path, cls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('FINETUNER_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('FINETUNER_CONFIG_DIR', str(tmp_path / 'config'))
    executor = Executor.load_config(str(path))
    try:
        assert type(executor) is cls
        assert executor.metas.name == cls.__name__
        assert executor.metas.description
        assert executor.metas.keywords
    finally:
        executor.close()


def test_there_are_no_others():
    assert {path.stem for path in MANIFESTS.iterdir()} == {'dataset', 'clicks', 'trainer', 'search', 'encoder'}
    assert yaml.safe_load((ROOT / 'config.yml').read_text()) == yaml.safe_load((MANIFESTS / 'encoder.yml').read_text())
