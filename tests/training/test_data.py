from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from finetuner.documents import Content, Document
from finetuner.excepts import DataError
from finetuner.inference.mlp_encoder import MLPEncoder
from registry.shards import DatasetReader, write_shard
from training.data import open_examples, prepare
from training.progress import Reporter


def examples_of(documents, encoders, directory, name='data'):
    directory.mkdir(parents=True, exist_ok=True)
    write_shard(documents, directory / 'shard.arrow')
    reader = DatasetReader([directory / 'shard.arrow'], name)
    prepare(reader, encoders, directory / 'prepared', Reporter())
    return open_examples(reader, directory / 'prepared')


def labelled(*rows):
    return [Document(text=text, tags={'finetuner_label': label}) for text, label in rows]


def pairs(*rows):
    return [Document(chunks=[Content(text=text) for text in row]) for row in rows]


def test_labels_are_numbered_as_they_appear(encoder, tmp_path):
    examples = examples_of(labelled(('one', 'b'), ('two', 'a'), ('three', 'b')), {'model': encoder}, tmp_path)
    assert examples.classes == ['b', 'a']
    assert examples.labels.tolist() == [0, 1, 0]
    assert examples.titles([2, 0]) == ['three', 'one']
    assert (len(examples), examples.class_count) == (3, 2)


def test_labels_can_be_numbered_as_in_another_data_set(encoder, tmp_path):
    examples = examples_of(labelled(('one', 'b'), ('two', 'new'), ('three', 'a')), {'model': encoder}, tmp_path)
    assert examples.labels_as(['a', 'b']).tolist() == [1, 2, 0]


def test_features_are_those_of_the_preprocessor(encoder, tmp_path):
    texts = ['please refund my card', 'pin', 'why is the rate so low now'] * 100
    examples = examples_of(labelled(*((text, 'x') for text in texts)), {'model': encoder}, tmp_path)
    (column,) = examples.columns
    rows = np.array([299, 0, 100])
    for found, expected in zip(
        column.store.features.take(column.items(rows)),
        encoder.preprocessor.features([texts[row] for row in rows]),
        strict=True,
    ):
        assert found.tolist() == expected.tolist()
    assert len(np.unique(column.store.keys)) == 3


def test_pairs_that_share_an_item_directly_or_through_others_are_one_group(encoder, tmp_path):
    data = pairs(('a', 'b'), ('c', 'd'), ('e', 'b'), ('f', 'e'), ('d', 'g'), ('h', 'i'))
    examples = examples_of(data, {'model': encoder}, tmp_path)
    assert examples.labels.tolist() == [0, 1, 0, 0, 1, 2]
    assert examples.classes == []


def test_both_columns_of_pairs_lie_in_one_store(encoder, tmp_path):
    examples = examples_of(pairs(('pin', 'card'), ('rate', 'refund')), {'model': encoder}, tmp_path)
    anchors, positives = examples.columns
    assert anchors.store is positives.store
    assert anchors.items(np.array([0, 1])).tolist() == [0, 2]
    assert positives.items(np.array([0, 1])).tolist() == [1, 3]
    assert examples.titles([1], column=1) == ['refund']


def test_contents_that_the_model_does_not_read_are_refused(encoder, tmp_path):
    data = [Document(tensor=np.zeros(4, np.float32), tags={'finetuner_label': 'x'})]
    with pytest.raises(DataError, match='vectors holds tensors, and the model reads texts'):
        examples_of(data, {'model': encoder}, tmp_path, 'vectors')


def test_an_item_that_cannot_be_read_is_named_by_its_document(tmp_path):
    data = [Document(tensor=np.zeros(4, np.float32), tags={'finetuner_label': 'x'})] * 3
    with pytest.raises(DataError, match='vectors: document 0 '):
        examples_of(data, {'model': MLPEncoder(5, [3])}, tmp_path, 'vectors')


MEMORY = """
import sys
from pathlib import Path

import torch

from finetuner.inference.mlp_encoder import MLPEncoder
from registry.shards import DatasetReader
from training.data import open_examples, prepare
from training.progress import Reporter

def anonymous() -> float:
    status = Path('/proc/self/status').read_text()
    return int(status.split('RssAnon:')[1].split()[0]) / 1024

before = anonymous()
reader = DatasetReader([Path(sys.argv[1])], 'large')
prepare(reader, {'model': MLPEncoder(1024, [8])}, Path(sys.argv[2]), Reporter())
examples = open_examples(reader, Path(sys.argv[2]))
print(anonymous() - before, len(examples))
"""


def test_memory_does_not_grow_with_the_data(tmp_path):
    """A data set of 200 MB, prepared from end to end, takes little memory."""
    vector = np.zeros(1024, np.float32)
    rows = (Document(tensor=vector + n, tags={'finetuner_label': str(n % 5)}) for n in range(50_000))
    assert write_shard(rows, tmp_path / 'large.arrow').size > 200_000_000
    command = [sys.executable, '-c', MEMORY, str(tmp_path / 'large.arrow'), str(tmp_path / 'prepared')]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, read = (float(value) for value in result.stdout.split())
    assert read == 50_000
    assert grown < 60


def test_a_file_that_changes_has_another_key(tmp_path):
    """Cached features are found by it, and the path is the same."""
    from PIL import Image

    from finetuner.inference.backbones import load_encoders

    encoders = load_encoders('squeezenet1_1', options={'pretrained': False})
    documents = [Document(uri=str(tmp_path / f'{name}.png'), modality='image') for name in 'ab']
    found = []
    for number, colour in enumerate(['red', 'red', 'blue']):
        Image.new('RGB', (8, 8), 'red').save(tmp_path / 'a.png')
        Image.new('RGB', (8, 8), colour).save(tmp_path / 'b.png')
        (column,) = examples_of(documents, encoders, tmp_path / str(number)).columns
        found.append(column.store.keys.tolist())
    assert found[0] == found[1] != found[2]
    assert found[0][0] == found[0][1] == found[2][0], 'equal pictures are equal contents, whatever they are called'
