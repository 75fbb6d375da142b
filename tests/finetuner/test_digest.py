"""The digest that tells one model from another."""

from __future__ import annotations

import json
import shutil

import pytest

from finetuner.inference import load_engine
from finetuner.inference.digest import digest_model


@pytest.fixture
def copy(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / 'copy')


def digest(directory):
    return digest_model(load_engine(directory), directory)


def test_a_copy_is_the_same_model_and_one_changed_setting_makes_another(tiny_model, copy):
    assert digest(copy) == digest(tiny_model)
    settings = copy / 'sentence_bert_config.json'
    settings.write_text(json.dumps({**json.loads(settings.read_text()), 'max_seq_length': 16}))
    assert digest(copy) != digest(tiny_model)
