import hashlib
import json

import numpy as np
import psutil
import pyarrow as pa
import pytest

from finetuner.documents import LABEL, SCORE, Content, Document
from finetuner.excepts import DataError
from registry.shards import BATCH_ROWS, OLD_COLUMNS, SCHEMA, DatasetReader, open_shards, write_shard

PNG = b'\x89PNG\r\n\x1a\n'


def write(directory, *documents):
    return write_shard(documents, directory / 'shard.arrow')


def read(directory):
    return DatasetReader([directory / 'shard.arrow'], 'the data')


def test_documents_come_back_as_rows(tmp_path):
    info = write(
        tmp_path,
        Document(id='a', text='Grüße 👋', modality='text', tags={LABEL: 'greeting', 'source': {'page': 3}}),
        Document(id='b', text='x', tags={LABEL: 7}),
        Document(id='c', text='y', tags={SCORE: 0.5}),
    )
    rows = open_shards([tmp_path / 'shard.arrow']).to_pylist()
    empty = dict.fromkeys(SCHEMA.names)
    assert rows == [
        empty
        | {'id': 'a', 'text': 'Grüße 👋', 'modality': 'text', 'label': 'greeting', 'tags': '{"source": {"page": 3}}'},
        empty | {'id': 'b', 'text': 'x', 'label': '7', 'tags': '{}'},
        empty | {'id': 'c', 'text': 'y', 'score': 0.5, 'tags': '{}'},
    ]
    content = (tmp_path / 'shard.arrow').read_bytes()
    assert (info.rows, info.shape, info.modalities) == (3, 'items', ('text',))
    assert (info.labelled, info.scored, info.linked) == (False, False, False)
    assert (info.size, info.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_labelled_texts_are_told(tmp_path, documents):
    info = write_shard(documents(5), tmp_path / 'shard.arrow')
    assert (info.shape, info.modalities, info.labelled, info.scored) == ('items', ('text',), True, False)
    labels, classes = read(tmp_path).labels()
    assert (labels.tolist(), labels.dtype, classes) == ([0, 1, 2, 0, 1], np.int32, ['label-0', 'label-1', 'label-2'])


def test_images_come_back_as_bytes(tmp_path):
    info = write(tmp_path, Document(blob=PNG + b'1', uri='cat.png'), Document(blob=PNG + b'2'))
    reader = read(tmp_path)
    assert (info.modalities, info.linked, reader.modalities, reader.linked) == (('image',), False, ('image',), False)
    assert reader.contents(0, 0, 2) == [PNG + b'1', PNG + b'2']
    assert reader.titles(0, [0]) == ['cat.png']


def test_what_lies_elsewhere_is_told(tmp_path):
    info = write(tmp_path, Document(uri='a/cat.PNG'), Document(uri='https://example.org/a.jpg?width=3'))
    assert (info.modalities, info.linked, read(tmp_path).linked) == (('image',), True, True)
    assert read(tmp_path).contents(0, 0, 2) == ['a/cat.PNG', 'https://example.org/a.jpg?width=3']
    with pytest.raises(DataError, match='the data names files or URLs, which are not opened here'):
        DatasetReader([tmp_path / 'shard.arrow'], 'the data', allow_links=False)


@pytest.mark.parametrize(
    'dtype, kept', [('float32', 'float32'), ('float64', 'float32'), ('int64', 'float32'), ('uint8',) * 2]
)
def test_tensors_are_views_of_the_file(tmp_path, dtype, kept):
    values = np.arange(24).reshape(4, 6).astype(dtype)
    info = write(tmp_path, *(Document(tensor=row) for row in values))
    contents = read(tmp_path).contents(0, 1, 4)
    assert info.modalities == ('tensor',)
    assert [(row.dtype, row.flags.writeable, row.flags.owndata) for row in contents] == [(kept, False, False)] * 3
    np.testing.assert_array_equal(contents, values[1:])


def test_a_cloud_of_points_keeps_its_shape(tmp_path):
    points = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    info = write(
        tmp_path,
        Document(tensor=points, modality='mesh', uri='chair.off'),
        Document(tensor=points[:2], modality='mesh'),
    )
    [first, second] = read(tmp_path).contents(0, 0, 2)
    assert info.modalities == ('mesh',)
    np.testing.assert_array_equal(first, points)
    assert second.shape == (2, 3)


@pytest.mark.parametrize('width, shape', [(2, 'pairs'), (3, 'triplets')])
def test_chunks_are_columns(tmp_path, width, shape):
    rows = [[f'{row} {column}' for column in range(width)] for row in range(BATCH_ROWS + 10)]
    documents = [
        Document(chunks=[Content(text=text) for text in texts], tags={SCORE: row}) for row, texts in enumerate(rows)
    ]
    info = write(tmp_path, *documents)
    reader = read(tmp_path)
    assert (info.shape, info.modalities, info.scored) == (shape, ('text',) * width, True)
    assert (reader.shape, reader.modalities, reader.scored, reader.labelled) == (shape, ('text',) * width, True, False)
    for column in range(width):
        expected = [texts[column] for texts in rows]
        assert reader.contents(column, 0, len(reader)) == expected
        assert reader.contents(column, BATCH_ROWS - 2, BATCH_ROWS + 3) == expected[BATCH_ROWS - 2 : BATCH_ROWS + 3]
        assert reader.titles(column, [5, BATCH_ROWS + 1]) == [expected[5], expected[BATCH_ROWS + 1]]
    assert reader.scores().tolist() == list(range(len(rows)))


def test_a_pair_may_be_of_two_kinds(tmp_path):
    pair = Document(chunks=[Content(text='a cat'), Content(blob=PNG, uri='cat.png')], tags={LABEL: 'a'})
    info = write(tmp_path, pair, pair)
    reader = read(tmp_path)
    assert info.modalities == reader.modalities == ('text', 'image')
    assert reader.contents(0, 0, 2) == ['a cat'] * 2
    assert reader.contents(1, 0, 2) == [PNG] * 2
    assert (reader.labelled, reader.titles(1, [0])) == (True, ['cat.png'])


def test_spans_are_bounded_by_rows_and_bytes(tmp_path):
    write(tmp_path, *(Document(blob=PNG + bytes(3 << 20)) for _ in range(7)))
    assert list(read(tmp_path).spans()) == [(0, 3), (3, 6), (6, 7)]
    assert list(read(tmp_path).spans(2)) == [(0, 2), (2, 3), (3, 5), (5, 6), (6, 7)]


@pytest.mark.parametrize(
    'other, problem',
    [
        (Document(chunks=[Content(text='x')] * 2), 'is a pair, and the first document an item'),
        (Document(tensor=np.zeros(3)), 'is of the modality tensor, and in the first document text'),
        (Document(blob=PNG), 'is of the modality image'),
    ],
)
def test_a_mixture_is_refused(tmp_path, other, problem):
    other.id = 'odd'
    with pytest.raises(DataError, match=rf"documents\[1\] \(id 'odd'\) {problem}"):
        write(tmp_path, Document(text='x'), other)


def test_tensors_are_of_one_length(tmp_path):
    with pytest.raises(DataError, match=r'documents\[1\] .* a tensor of shape \(3,\), and the first document \(2,\)'):
        write(tmp_path, Document(tensor=np.zeros(2)), Document(tensor=np.zeros(3)))


def test_a_missing_label_is_named(tmp_path):
    write(tmp_path, Document(text='x', tags={LABEL: 1}), Document(id='odd', text='y'))
    with pytest.raises(DataError, match=r"the data: document 1 \(id 'odd'\) has no label"):
        read(tmp_path).labels()
    with pytest.raises(DataError, match='document 0 .* has no score'):
        read(tmp_path).scores()


def test_shards_of_before_are_read(tmp_path, documents):
    write_shard(documents(BATCH_ROWS + 5), tmp_path / 'new.arrow')
    table = open_shards([tmp_path / 'new.arrow']).select(OLD_COLUMNS)
    with pa.ipc.new_file(tmp_path / 'old.arrow', table.schema) as writer:
        writer.write_table(table)
    reader = DatasetReader([tmp_path / 'old.arrow', tmp_path / 'new.arrow'], 'both')
    assert (len(reader), reader.shape, reader.modalities, reader.labelled) == (
        2 * BATCH_ROWS + 10,
        'items',
        ('text',),
        True,
    )
    assert reader.contents(0, BATCH_ROWS + 3, BATCH_ROWS + 7) == [f'text number {n}' for n in (4099, 4100, 0, 1)]
    assert reader.table.schema == SCHEMA


def test_the_content_digest_of_texts_is_as_before(tmp_path):
    info = write(tmp_path, Document(text='x', tags={LABEL: 'a'}), Document(text='y', modality='text', tags={'page': 3}))
    before = b'1:x---1:a2:{}' + b'1:y--4:text-11:{"page": 3}'
    assert info.content_digest == hashlib.sha256(before).hexdigest()


def test_the_content_digest_tells_pairs_scores_and_tensors(tmp_path):
    def digest(document):
        return write(tmp_path, document).content_digest

    def pair(first, second, **tags):
        return Document(chunks=[Content(text=first), Content(text=second)], tags=tags)

    documents = [
        pair('a', 'b'),
        pair('b', 'a'),
        pair('ab', 'c'),
        pair('a', 'bc'),
        pair('a', 'b', **{SCORE: 1}),
        pair('a', 'b', **{SCORE: 0.5}),
        pair('a', 'b', **{LABEL: 1}),
        Document(tensor=np.zeros(8, np.float32)),
        Document(tensor=np.zeros((2, 4), np.float32)),
        Document(tensor=np.zeros(32, np.uint8)),
        Document(text='a'),
        Document(text='a', tags={SCORE: 1}),
    ]
    assert len({digest(document) for document in documents}) == len(documents)


def test_the_same_documents_give_the_same_bytes(tmp_path, documents):
    first = write_shard(documents(BATCH_ROWS + 10), tmp_path / 'a.arrow')
    second = write_shard(iter(documents(BATCH_ROWS + 10)), tmp_path / 'b.arrow')
    assert first == second


def test_the_content_digest_tells_all_but_the_ids(tmp_path):
    def digest(*documents):
        return write_shard(documents, tmp_path / 'shard.arrow').content_digest

    fields = {'text': 'x', 'tags': {LABEL: 'a', 'page': 3, 'line': 1}}
    assert digest(Document(id='1', **fields)) == digest(Document(id='2', **fields)) == digest(Document(**fields))
    others = [
        fields | {'text': 'y'},
        fields | {'tags': fields['tags'] | {LABEL: 'b'}},
        fields | {'tags': fields['tags'] | {'page': 4}},
        fields | {'tags': {}},
        {'text': 'x', 'modality': 'text'},
        {'uri': 'x.png'},
        {'blob': b'x', 'modality': 'image'},
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
        ({'text': 'x', 'tensor': np.zeros(0)}, r'has several contents \(text, tensor\)'),
        ({'tensor': np.zeros(0)}, 'there is nothing in it to learn from'),
        ({'tensor': np.array(1.0)}, 'there is nothing in it to learn from'),
        ({'tensor': np.array([1.0, np.nan])}, 'numbers that are not finite'),
        ({'tensor': np.array([1j])}, 'the dtype complex128: give numbers'),
        ({'chunks': [Content(text='x')]}, 'has 1 chunk: a pair has 2'),
        ({'chunks': [Content(text='x')] * 4}, 'has 4 chunks: a pair has 2'),
        ({'text': 'x', 'chunks': [Content(text='x')] * 2}, r'has several contents \(text, chunks\)'),
        ({'chunks': [Content(text='x'), Content()]}, 'chunk 1 has no content'),
        ({'blob': b'x'}, "the blob is no known image or mesh: set modality to 'image'"),
        ({'uri': 'readme.md'}, 'the uri is no known image or mesh'),
        ({'text': 'x', 'modality': 'words'}, "the modality 'words' is unknown: it is one of text, image"),
        ({'text': 'x', 'modality': 'image'}, "the modality is 'image', and the content a text"),
        ({'blob': b'x', 'modality': 'text'}, "the modality is 'text', and the content a blob"),
        ({'text': 'x', 'tags': {SCORE: 'high'}}, "'high': a score is a number"),
        ({'text': 'x', 'tags': {SCORE: float('inf')}}, 'inf: a score is a finite number'),
        ({'text': 'x', 'tags': {SCORE: 1e39}}, 'a score is a finite number'),
        ({'text': 'x', 'tags': {SCORE: True}}, 'True: a score is a number'),
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


@pytest.mark.slow
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
