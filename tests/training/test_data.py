from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from finetuner.documents import Document
from finetuner.excepts import DataError
from registry.shards import SCHEMA, write_shard
from training.data import LabelledTexts, tokenise
from training.progress import Reporter


def test_labels_are_numbered_as_they_appear(tmp_path):
    file = tmp_path / 'data.csv'
    file.write_text('text,label\none,b\ntwo,a\nthree,b\nfour,c\n')
    texts = LabelledTexts.from_csv(file, tmp_path / 'shards')
    assert texts.classes == ['b', 'a', 'c']
    assert texts.labels.tolist() == [0, 1, 0, 2]
    assert texts.labels.dtype == np.int32
    assert texts.texts([3, 0]) == ['four', 'one']


def test_labels_can_be_numbered_as_in_another_data_set(tmp_path):
    file = tmp_path / 'data.csv'
    file.write_text('text,label\none,b\ntwo,new\nthree,a\n')
    texts = LabelledTexts.from_csv(file, tmp_path / 'shards')
    assert texts.labels_as(['a', 'b']).tolist() == [1, 2, 0]


def test_several_shards_are_one_data_set(tmp_path):
    for part, label in enumerate(['x', 'y']):
        rows = [Document(id=str(n), text=f'{label}{n}', tags={'finetuner_label': label}) for n in range(3)]
        write_shard(rows, tmp_path / f'{part}.arrow')
    texts = LabelledTexts.from_shards([tmp_path / '0.arrow', tmp_path / '1.arrow'], 'both')
    assert texts.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert texts.texts([2, 3]) == ['x2', 'y0']


@pytest.mark.parametrize(
    ('document', 'lacks'),
    [(Document(id='b', text='no label'), 'label'), (Document(id='b', uri='x', tags={'finetuner_label': 1}), 'text')],
)
def test_a_row_that_lacks_something_is_named(tmp_path, document, lacks):
    good = Document(id='a', text='fine', tags={'finetuner_label': 'x'})
    write_shard([good, document], tmp_path / '0.arrow')
    with pytest.raises(DataError, match=rf"intents: document 1 \(id 'b'\) has no {lacks}"):
        LabelledTexts.from_shards([tmp_path / '0.arrow'], 'intents')


def test_texts_are_mapped_and_not_copied(tmp_path):
    rows = (Document(id=str(n), text='word ' * 200, tags={'finetuner_label': str(n % 5)}) for n in range(5000))
    size = write_shard(rows, tmp_path / '0.arrow').size
    before = pa.total_allocated_bytes()
    texts = LabelledTexts.from_shards([tmp_path / '0.arrow'], 'many')
    assert size > 5_000_000
    assert pa.total_allocated_bytes() - before < 200_000, 'labels at most'
    assert len(texts) == 5000


def test_tokens_are_those_of_the_tokenizer(encoder, train_csv, tmp_path):
    texts = LabelledTexts.from_csv(train_csv, tmp_path)
    tokens = tokenise(texts, encoder.tokenizer, 12, tmp_path, Reporter()).tokens
    assert isinstance(tokens.tokens, np.memmap)
    assert isinstance(tokens.offsets, np.memmap)
    rows = np.array([5, 0, 119, 5])
    ids, mask = tokens.padded(rows)
    expected = encoder.tokenizer(texts.texts(rows), truncation=True, max_length=12, padding=True, return_tensors='pt')
    assert ids.tolist() == expected['input_ids'].tolist()
    assert mask.tolist() == expected['attention_mask'].tolist()
    assert len(tokens) == 120
    assert tokens.lengths(rows).tolist() == expected['attention_mask'].sum(1).tolist()


MEMORY = """
import sys
from pathlib import Path
from training.data import LabelledTexts

def anonymous() -> float:
    status = Path('/proc/self/status').read_text()
    return int(status.split('RssAnon:')[1].split()[0]) / 1024

before = anonymous()
texts = LabelledTexts.from_shards([Path(sys.argv[1])], 'large')
read = sum(len(text) for start in range(0, len(texts), 256) for text in texts.texts(range(start, start + 256)))
print(anonymous() - before, read)
"""


def test_memory_does_not_grow_with_the_data(tmp_path):
    """A data set of 200 MB, opened and read from end to end, takes little memory."""
    path, text = tmp_path / 'large.arrow', 'word ' * 2000
    batch = pa.record_batch(
        {'id': [str(n) for n in range(1024)], 'text': [text] * 1024, 'label': ['x', 'y'] * 512, 'tags': ['{}'] * 1024}
    )
    missing = [field for field in SCHEMA.names if field not in batch.schema.names]
    columns = {name: pa.nulls(1024, SCHEMA.field(name).type) for name in missing}
    columns |= {name: batch[name].cast(SCHEMA.field(name).type) for name in batch.schema.names}
    with pa.ipc.new_file(str(path), SCHEMA) as writer:
        for _ in range(20):
            writer.write_batch(pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA))
    assert path.stat().st_size > 200_000_000
    result = subprocess.run([sys.executable, '-c', MEMORY, str(path)], capture_output=True, text=True, check=True)
    grown, read = (float(value) for value in result.stdout.split())
    assert read == 20 * 1024 * len(text)
    assert grown < 60
