import hashlib
import json

import numpy as np
import psutil
import pyarrow as pa
import pytest

from finetuner.documents import LABEL, Content, Document
from finetuner.excepts import DataError
from registry.shards import BATCH_ROWS, SCHEMA, open_shards, write_shard


def test_documents_come_back_as_rows(tmp_path):
    documents = [
        Document(id='a', text='Grüße 👋', modality='text', tags={LABEL: 'greeting', 'source': {'page': 3}}),
        Document(id='b', uri='https://example.org/a.png'),
        Document(id='c', blob=b'\x00\xff', tags={LABEL: 7}),
    ]
    info = write_shard(documents, tmp_path / 'shard.arrow')

    assert open_shards([tmp_path / 'shard.arrow']).to_pylist() == [
        {
            'id': 'a',
            'text': 'Grüße 👋',
            'uri': None,
            'blob': None,
            'modality': 'text',
            'label': 'greeting',
            'tags': '{"source": {"page": 3}}',
        },
        {
            'id': 'b',
            'text': None,
            'uri': 'https://example.org/a.png',
            'blob': None,
            'modality': None,
            'label': None,
            'tags': '{}',
        },
        {'id': 'c', 'text': None, 'uri': None, 'blob': b'\x00\xff', 'modality': None, 'label': '7', 'tags': '{}'},
    ]
    content = (tmp_path / 'shard.arrow').read_bytes()
    assert (info.rows, info.labelled, info.texts) == (3, False, False)
    assert (info.size, info.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_labelled_texts_are_told(tmp_path, documents):
    info = write_shard(documents(5), tmp_path / 'shard.arrow')
    assert (info.labelled, info.texts) == (True, True)


def test_the_same_documents_give_the_same_bytes(tmp_path, documents):
    first = write_shard(documents(BATCH_ROWS + 10), tmp_path / 'a.arrow')
    second = write_shard(iter(documents(BATCH_ROWS + 10)), tmp_path / 'b.arrow')
    assert first == second


def test_the_content_digest_tells_all_but_the_ids(tmp_path):
    def digest(*documents):
        return write_shard(documents, tmp_path / 'shard.arrow').content_digest

    fields = {'text': 'x', 'modality': 'text', 'tags': {LABEL: 'a', 'page': 3, 'line': 1}}
    assert digest(Document(id='1', **fields)) == digest(Document(id='2', **fields)) == digest(Document(**fields))
    others = [
        fields | {'text': 'y'},
        fields | {'modality': 'other'},
        fields | {'tags': fields['tags'] | {LABEL: 'b'}},
        fields | {'tags': fields['tags'] | {'page': 4}},
        fields | {'tags': {}},
        {'text': 'x'},
        {'uri': 'x'},
        {'blob': b'x'},
    ]
    assert len({digest(Document(**other)) for other in [fields, *others]}) == len(others) + 1
    ab, a, b = (Document(text=text) for text in ('ab', 'a', 'b'))
    assert len({digest(*documents) for documents in [(ab,), (a, b), (b, a), (a, b, b)]}) == 4


def test_several_shards_are_one_table_that_copies_nothing(tmp_path, documents):
    paths = [tmp_path / f'{part}.arrow' for part in range(3)]
    for part, path in enumerate(paths):
        write_shard(documents(BATCH_ROWS * 2, start=part * BATCH_ROWS * 2), path)
    allocated = pa.total_allocated_bytes()
    table = open_shards(paths)
    assert pa.total_allocated_bytes() - allocated < 100_000 < table.nbytes
    assert table['id'].to_pylist() == [f'd{index}' for index in range(BATCH_ROWS * 6)]


def test_no_shards_are_an_empty_table():
    assert open_shards([]).schema == SCHEMA


@pytest.mark.parametrize(
    'given, stored', [('7', '7'), (7, '7'), (7.0, '7'), (0.5, '0.5'), (True, 'True'), (np.int64(7), '7'), (None, None)]
)
def test_labels_are_stored_as_strings(tmp_path, given, stored):
    write_shard([Document(text='x', tags={LABEL: given})], tmp_path / 'shard.arrow')
    assert open_shards([tmp_path / 'shard.arrow'])['label'].to_pylist() == [stored]


@pytest.mark.parametrize(
    'fields, problem',
    [
        ({}, 'has no content'),
        ({'text': ''}, 'has no content'),
        ({'text': ' \n'}, 'has no content'),
        ({'blob': b''}, 'has no content'),
        ({'text': 'x', 'blob': b'y'}, r'has several contents \(text, blob\)'),
        ({'tensor': np.zeros(3)}, 'has tensor, which cannot be stored'),
        ({'text': 'x', 'tensor': np.zeros(0)}, r'has several contents \(text, tensor\)'),
        ({'chunks': [Content(text='x')]}, 'has chunks, which cannot be stored'),
        ({'text': 'x', 'tags': {LABEL: ['a', 'b']}}, r"\['a', 'b'\]: a label is a string"),
        ({'text': 'x', 'tags': {LABEL: float('nan')}}, 'nan: a label is a string'),
        ({'text': 'x', 'tags': {LABEL: ' '}}, 'is empty'),
        ({'text': 'x', 'tags': {LABEL: '\ud800'}}, 'is not valid Unicode'),
        ({'text': 'x \ud800'}, 'text is not valid Unicode: surrogates not allowed at character 2'),
        ({'text': 'x', 'tags': {'price': float('inf')}}, 'tags cannot be written as JSON'),
        ({'text': 'x', 'tags': {'image': np.zeros(3)}}, 'tags cannot be written as JSON'),
    ],
)
def test_a_malformed_document_is_named(tmp_path, fields, problem):
    document = Document(id='odd', **fields)
    with pytest.raises(DataError, match=problem) as raised:
        write_shard([Document(text='a'), Document(text='b'), document], tmp_path / 'shard.arrow')
    assert str(raised.value).startswith("documents[2] (id 'odd')")
    assert list(tmp_path.glob('*.arrow*')) == []


def test_something_else_than_a_document_is_named(tmp_path):
    with pytest.raises(DataError, match=r'documents\[1\] is a str, not a Document'):
        write_shard([Document(text='a'), 'b'], tmp_path / 'shard.arrow')


def test_no_documents_are_refused(tmp_path):
    with pytest.raises(DataError, match='There are no documents'):
        write_shard([], tmp_path / 'shard.arrow')


@pytest.mark.parametrize('content', [b'', b'not a shard', b'ARROW1\0\0' + b'x' * 100 + b'ARROW1'])
def test_a_file_that_is_no_shard_is_refused(tmp_path, content):
    (tmp_path / 'odd.arrow').write_bytes(content)
    with pytest.raises(DataError, match='odd.arrow is not a shard'):
        open_shards([tmp_path / 'odd.arrow'])


def test_a_file_of_other_columns_is_refused(tmp_path):
    table = pa.table({'id': ['a'], 'words': ['b']})
    with pa.ipc.new_file(tmp_path / 'odd.arrow', table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match='its columns are id, words'):
        open_shards([tmp_path / 'odd.arrow'])


def test_writing_a_large_shard_takes_little_memory(tmp_path):
    rows, words = 300_000, 'word ' * 200
    process = psutil.Process()
    start, peak = process.memory_info().rss, 0
    document = Document(text='x')

    def stream():
        nonlocal peak
        for index in range(rows):
            document.id, document.text = str(index), f'{index} {words}'
            document.tags = {LABEL: index % 77}
            if index % 5000 == 0:
                peak = max(peak, process.memory_info().rss)
            yield document

    info = write_shard(stream(), tmp_path / 'large.arrow')

    assert info.rows == rows
    assert info.size > 300e6
    assert peak - start < 100e6
    assert json.loads(open_shards([tmp_path / 'large.arrow'])['label'][-1].as_py()) == (rows - 1) % 77
