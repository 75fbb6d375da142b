"""Which columns are contents, label and score, in files of every kind."""

from __future__ import annotations

import csv
import io
import json
import logging
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetuner.data import CSVOptions, json_lines, read_data
from finetuner.data.columnar import open_columnar
from finetuner.documents import LABEL, SCORE, Content, Document, DocumentArray
from finetuner.excepts import DataError


@pytest.fixture(autouse=True)
def told(caplog):
    """What is told is read, whatever level the tests before have left."""
    caplog.set_level('INFO', 'finetuner')


@pytest.fixture
def table(tmp_path):
    def write(rows, name='table.csv', **options):
        with (tmp_path / name).open('w', newline='') as file:
            csv.writer(file, **options).writerows(rows)
        return tmp_path / name

    return write


@pytest.fixture
def lines(tmp_path):
    def write(*objects, name='table.jsonl'):
        path = tmp_path / name
        path.write_text(''.join((item if isinstance(item, str) else json.dumps(item)) + '\n' for item in objects))
        return path

    return write


def contents(document):
    return tuple(chunk.text for chunk in document.chunks or [document])


def read(source, **options):
    """(contents, label, score) of every document."""
    documents = list(read_data(source, CSVOptions(**options)))
    return [(contents(document), document.tags.get(LABEL), document.tags.get(SCORE)) for document in documents]


def pairs(count):
    return [(f'what is number {n}', f'it is the number {n}.') for n in range(count)]


def test_two_columns_without_labels_are_pairs(table, caplog):
    with caplog.at_level(logging.INFO):
        assert read(table(pairs(20))) == [(pair, None, None) for pair in pairs(20)]
    assert 'table.csv: pairs: contents in column 1 and column 2' in caplog.text


def test_two_columns_with_repeated_names_are_labelled(table, caplog):
    rows = [(f'what is number {n}', f'kind {n % 7}') for n in range(20)]
    with caplog.at_level(logging.INFO):
        assert read(table(rows)) == [((text,), label, None) for text, label in rows]
    assert 'labelled items: contents in column 1, label in column 2' in caplog.text
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert 'if the rows are pairs, give CSVOptions(is_labeled=False)' in warning


@pytest.mark.parametrize(
    'options', [{'is_labeled': True}, {'is_labeled': False}, {'columns': {'content': 1, 'label': 2}}]
)
def test_what_the_options_say_is_no_cause_for_a_warning(table, caplog, options):
    read(table([(f'what is number {n}', f'kind {n % 7}') for n in range(20)]), **options)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ('header', 'second', 'labelled'),
    [
        (('text', 'category'), 'a name of its own {n}', True),  # named so
        (('question', 'answer'), 'kind {n % 2}', False),  # named otherwise
        (None, 'The same answer, which is long.', False),  # sentences that repeat
        (None, 'word {n}', False),  # names that do not
        (None, '{n}', True),  # numbers
        (None, '{n % 2}', True),
    ],
)
def test_what_a_second_column_is(table, header, second, labelled):
    rows = [(f'what is number {n}', eval(f'f{second!r}')) for n in range(20)]
    documents = list(read_data(table([header, *rows] if header else rows)))
    assert len(documents) == 20
    assert all((LABEL in document.tags) == labelled == (not document.chunks) for document in documents)


def test_the_option_decides_over_the_guess(table):
    labelled = [(f'text {n}', f'kind {n % 2}') for n in range(20)]
    assert read(table(labelled), is_labeled=False) == [(row, None, None) for row in labelled]
    assert read(table([('text', 'label'), *labelled]), is_labeled=False)[0] == (labelled[0], None, None)
    assert read(table(pairs(20)), is_labeled=True)[3] == (('what is number 3',), 'it is the number 3.', None)


def test_a_third_column_of_numbers_is_a_score(table):
    rows = [(*pair, number / 4) for number, pair in enumerate(pairs(4))]
    expected = [((a, b), None, score) for a, b, score in rows]
    assert read(table(rows)) == read(table([('sentence1', 'sentence2', 'score'), *rows])) == expected
    assert read(table([('erster', 'zweiter', 'wert'), *rows])) == expected
    # the score may stand anywhere if it is named
    assert read(table([('score', 'a', 'b'), *((c, a, b) for a, b, c in rows)])) == expected


def test_a_score_that_is_no_number_is_named(table):
    rows = [('score', 'first', 'second'), ('0.5', 'a', 'b'), ('high', 'a', 'b')]
    with pytest.raises(DataError, match="table.csv, line 3, column 1: 'high' is no score: give a number"):
        read(table(rows))
    with pytest.raises(DataError, match='line 3, column 1: .* is no score'):
        read(table([*rows[:2], ('nan', 'a', 'b')]))


def test_three_columns_of_text_are_triplets(table):
    rows = [(*pair, f'no, {n}') for n, pair in enumerate(pairs(4))]
    assert read(table(rows)) == [(row, None, None) for row in rows]
    margins = [(*row, 0.5 * n) for n, row in enumerate(rows)]
    assert read(table(margins)) == [(row[:3], None, row[3]) for row in margins]
    assert read(table([('query', 'positive', 'negative', 'margin'), *margins]))[2] == (rows[2], None, 1.0)


def test_pairs_may_have_a_label(table):
    rows = [(*pair, f'group {n // 2}') for n, pair in enumerate(pairs(6))]
    assert read(table(rows), is_labeled=True)[5] == (rows[5][:2], 'group 2', None)
    assert read(table([('text', 'other text', 'label'), *rows]))[5] == (rows[5][:2], 'group 2', None)


def test_labels_of_pairs_between_0_and_1_are_scores(table):
    rows = [('sentence1', 'sentence2', 'label'), *((*pair, n % 2) for n, pair in enumerate(pairs(6)))]
    assert read(table(rows))[1] == (pairs(6)[1], None, 1.0)
    assert read(table(rows), is_labeled=True)[1] == (pairs(6)[1], '1', None)


def test_columns_are_chosen_by_name_or_number(table):
    rows = [
        ('id', 'title', 'body', 'kind', 'more'),
        *((n, f'title {n}', f'body {n}', f'k{n % 2}', n) for n in range(4)),
    ]
    path = table(rows)
    assert read(path, columns={'content': 'body', 'label': 'kind'})[1] == (('body 1',), 'k1', None)
    assert read(path, columns={'content': 3, 'label': 4})[2] == (('body 2',), 'k0', None)
    assert read(path, columns={'content': ['title', 'body']})[3] == (('title 3', 'body 3'), None, None)
    assert read(path, columns={'content': [2, 3], 'score': 'more'})[3] == (('title 3', 'body 3'), None, 3.0)
    with pytest.raises(DataError, match="no column 'text': it has id, title, body, kind, more"):
        read(path, columns={'content': 'text'})
    with pytest.raises(DataError, match='table.csv has 5 columns: there is no column 6'):
        read(path, columns={'content': 6})
    with pytest.raises(DataError, match="5 columns .*, of which 5 may be contents.*columns={'content'"):
        read(table([('first', *rows[0][1:3], 'x', 'y'), *rows[1:]]))


def test_columns_of_ids_are_left_out(table):
    rows = [('id', 'text', 'label'), *((n, f'text {n}', f'kind {n % 2}') for n in range(4))]
    assert read(table(rows))[3] == (('text 3',), 'kind 1', None)


def test_a_delimiter_of_three_columns_is_found(table):
    rows = [(f'one, and {n}', f'two, not {n}', n) for n in range(4)]
    assert read(table(rows, delimiter='\t'))[1] == (('one, and 1', 'two, not 1'), None, 1.0)


def test_a_score_needs_two_contents(table):
    rows = [('text', 'score'), *((f'text {n}', n / 4) for n in range(4))]
    with pytest.raises(DataError, match='a score belongs to a pair or to a triplet'):
        read(table(rows))


def test_empty_cells_of_pairs_are_named(table):
    with pytest.raises(DataError, match='table.csv, line 2, column 2: the text is empty'):
        read(table([('a', 'b'), ('c', ' ')]), is_labeled=False)


def test_ids_of_pairs_follow_from_the_content(table):
    first, again = (list(read_data(table(pairs(20)))) for _ in range(2))
    assert [document.id for document in first] == [document.id for document in again]
    assert len({document.id for document in first}) == 20
    assert first[0].chunks[0].id != first[0].chunks[1].id


# JSONL


def test_json_lines(lines):
    path = lines(
        {'id': 1, 'text': 'a', 'label': 'x'}, '', {'label': 7, 'text': 'b'}, {'text': 'c', 'label': True, 'note': 3}
    )
    assert read(path, columns={'content': 'text', 'label': 'label'}) == [
        (('a',), 'x', None),
        (('b',), 7, None),
        (('c',), True, None),
    ]
    assert read(lines({'intent': 'x', 'text': 'a'})) == [(('a',), 'x', None)]


def test_json_lines_of_pairs_and_triplets(lines):
    assert read(lines({'query': 'a', 'answer': 'b'})) == [(('a', 'b'), None, None)]
    assert read(lines({'query': 'a', 'answer': 'b', 'similarity': 0.25})) == [(('a', 'b'), None, 0.25)]
    assert read(lines({'q': 'a', 'p': 'b', 'n': 'c', 'margin': -1})) == [(('a', 'b', 'c'), None, -1.0)]


def test_json_lines_from_an_open_file(lines):
    with lines({'text': 'a', 'label': 'x'}).open() as file:
        assert read(file) == [(('a',), 'x', None)]


def test_lists_of_numbers_are_tensors(lines):
    documents = list(read_data(lines({'vector': [1, 2.5], 'label': 3}, {'vector': [0, 1], 'label': 3})))
    assert [document.tensor.tolist() for document in documents] == [[1, 2.5], [0, 1]]
    assert documents[0].tensor.dtype == np.float32 and documents[0].tags[LABEL] == 3


@pytest.mark.parametrize(
    ('line', 'problem'),
    [
        ('{"text": "b"', 'line 2: it is not JSON'),
        ('["b", "x"]', 'line 2: it is a list, not an object'),
        ('null', 'line 2: it is null, not an object'),
        ({'text': 'b'}, "line 2, field 'label': the label is missing"),
        ({'text': 'b', 'label': None}, "line 2, field 'label': the label is missing"),
        ({'text': 'b', 'label': ['x']}, "line 2, field 'label': ..x.. is no label"),
        ({'label': 'x'}, "line 2, field 'text': the text is missing .label 'x'"),
        ({'text': 3, 'label': 'x'}, "line 2, field 'text': 3 is no text"),
    ],
)
def test_malformed_lines_are_named(lines, line, problem):
    with pytest.raises(DataError, match='table.jsonl, ' + problem):
        read(lines({'text': 'a', 'label': 'x'}, line))


@pytest.mark.parametrize(
    ('vector', 'problem'),
    [
        ([], 'has no numbers'),
        ([[1], [1, 2]], 'different lengths'),
        (['a'], 'no list of numbers'),
        ([1e39], 'not finite'),
    ],
)
def test_malformed_tensors_are_named(lines, vector, problem):
    with pytest.raises(DataError, match=f"table.jsonl, line 2, field 'vector': .*{problem}"):
        read(lines({'vector': [1], 'label': 'x'}, {'vector': vector, 'label': 'x'}))


def test_a_line_of_json_has_a_limit_before_it_is_read(monkeypatch):
    asked = []

    class Endless(io.StringIO):
        def readline(self, size=-1):
            asked.append(size)
            return 'x' * size

    monkeypatch.setattr(json_lines, 'MAX_LINE', 1 << 20)
    with pytest.raises(DataError, match='endless.jsonl, line 1: it is longer than 1 Mi characters'):
        list(read_data(Endless(), name='endless.jsonl'))
    assert asked == [(1 << 20) + 1]


def test_an_empty_file_is_named(lines):
    with pytest.raises(DataError, match='table.jsonl is empty'):
        read(lines(''))


# Parquet and Arrow


@pytest.fixture
def columns(tmp_path):
    def write(data, name='table.parquet', **options):
        path, table = tmp_path / name, pa.table(data)
        if name.endswith('.parquet'):
            pq.write_table(table, path, row_group_size=options.get('rows'))
        else:
            make = pa.ipc.new_stream if options.get('stream') else pa.ipc.new_file
            with make(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=options.get('rows', 3))
        return path

    return write


@pytest.mark.parametrize(
    ('name', 'options'),
    [('t.parquet', {}), ('t.parquet', {'rows': 3}), ('t.arrow', {}), ('t.arrow', {'stream': True})],
)
def test_columnar_files(columns, name, options):
    path = columns({'text': [f't{n}' for n in range(10)], 'label': [n % 3 for n in range(10)]}, name, **options)
    assert read(path) == [((f't{n}',), n % 3, None) for n in range(10)]
    assert len(read(path, size=4)) == 4


@pytest.mark.parametrize('kind', [pa.list_(pa.float32()), pa.list_(pa.float64(), 2), pa.large_list(pa.int16())])
@pytest.mark.parametrize('name', ['t.parquet', 't.arrow'])
def test_columns_of_lists_are_tensors(columns, name, kind):
    values = [[n, n + 1] for n in range(10)]
    path = columns({'y': ['a'] * 10, 'vector': pa.array(values, kind)}, name)
    documents = list(read_data(path, CSVOptions(columns={'content': 'vector', 'label': 'y'})))
    assert [document.tensor.tolist() for document in documents] == values
    assert documents[0].tensor.dtype == np.float32


def test_labels_of_a_dictionary_are_read(columns):
    labels = pa.array(['x', 'y', 'x']).dictionary_encode()
    assert [label for _, label, _ in read(columns({'text': ['a', 'b', 'c'], 'label': labels}))] == ['x', 'y', 'x']


def shared_column(kind):
    """1000 rows, each of 100 KiB in memory and of hardly a byte in a file."""
    size = 100 << 10
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array(['x' * size]))
    if kind == 'texts':
        return words.cast(pa.string())
    if kind == 'lists':
        return pa.ListArray.from_arrays(pa.array(np.arange(1001, dtype=np.int32)), words)
    if kind == 'structs':
        return pa.StructArray.from_arrays([words], ['path'])
    if kind == 'numbers':
        return pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1000 * size // 4, np.float32)), size // 4)
    if kind == 'views':
        views = np.zeros(1000, [('size', 'i4'), ('prefix', 'S4'), ('buffer', 'i4'), ('offset', 'i4')])
        views['size'], views['prefix'] = size, b'xxxx'
        buffers = [None, pa.py_buffer(views.tobytes()), pa.py_buffer(b'x' * size)]
        return pa.Array.from_buffers(pa.string_view(), 1000, buffers)
    return words


@pytest.mark.parametrize(
    ('suffix', 'kind'),
    [
        *(('parquet', kind) for kind in ('texts', 'dictionary', 'lists', 'structs', 'numbers')),
        *(('arrow', kind) for kind in ('dictionary', 'lists', 'structs', 'views')),
    ],
)
def test_values_that_a_file_holds_once_are_held_a_few_times(columns, suffix, kind):
    data = {'text': ['a'] * 1000, 'label': ['b', 'c'] * 500, 'id': shared_column(kind)}
    path = columns(data, f'once.{suffix}', rows=1000)
    del data
    start = pa.total_allocated_bytes()
    tracemalloc.start()
    table, _ = open_columnar(path, CSVOptions(), path.name)
    held = [pa.total_allocated_bytes() - start for _ in table.rows]
    used = max(held) + tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(held) == 1000 and used < 50 << 20


def test_values_of_a_dictionary_may_be_missing(columns):
    texts = pa.DictionaryArray.from_arrays(pa.array([2, 0, None, 1, 2], pa.int8()), pa.array(['a', None, 'c']))
    table, _ = open_columnar(columns({'text': texts, 'label': ['x'] * 5}, 't.arrow'), CSVOptions(), 't.arrow')
    assert [text for _, (text, _) in table.rows] == ['c', 'a', None, None, 'c']


def test_malformed_rows_of_columns_are_named(columns):
    with pytest.raises(DataError, match="table.parquet, row 1, column 'text': the text is missing"):
        read(columns({'text': ['a', None], 'label': ['x', 'y']}))
    with pytest.raises(DataError, match="table.parquet, row 1, column 'vector': the tensor is missing"):
        read(columns({'vector': pa.array([[1.0], None]), 'label': ['x', 'y']}))


def test_damaged_columnar_files_are_named(tmp_path):
    for name in ('odd.parquet', 'odd.arrow'):
        (tmp_path / name).write_bytes(b'PAR1 and nothing more' * 10)
        with pytest.raises(DataError, match=f'{name} cannot be read'):
            read(tmp_path / name)


# data sets of `datasets`


def test_a_data_set_of_hugging_face():
    datasets = pytest.importorskip('datasets')
    features = datasets.Features({'text': datasets.Value('string'), 'label': datasets.ClassLabel(names=['no', 'yes'])})
    dataset = datasets.Dataset.from_dict({'text': ['a', 'b', 'c'], 'label': [1, 0, 1]}, features=features)
    expected = [(('a',), 'yes', None), (('b',), 'no', None), (('c',), 'yes', None)]
    assert read(dataset) == read(dataset.to_iterable_dataset()) == expected
    assert len(read(dataset, size=2)) == 2


def test_a_data_set_of_pairs_and_vectors():
    datasets = pytest.importorskip('datasets')
    dataset = datasets.Dataset.from_dict({'a': ['x', 'y'], 'b': ['v', 'w'], 'score': [0.5, 1.0]})
    assert read(dataset) == [(('x', 'v'), None, 0.5), (('y', 'w'), None, 1.0)]
    dataset = datasets.Dataset.from_dict({'vector': [[1.0, 2.0], [3.0, 4.0]], 'label': [0, 1]})
    assert [document.tensor.tolist() for document in read_data(dataset)] == [[1, 2], [3, 4]]
    with pytest.raises(DataError, match="the data set, row 1, column 'b': the text is missing"):
        read(datasets.Dataset.from_dict({'a': ['x', 'y'], 'b': ['v', None]}), is_labeled=False)


def test_labels_of_a_data_set_in_torch_format():
    datasets = pytest.importorskip('datasets')
    features = datasets.Features({'text': datasets.Value('string'), 'label': datasets.ClassLabel(names=['no', 'yes'])})
    named = datasets.Dataset.from_dict({'text': ['a', 'b'], 'label': [1, 0]}, features=features)
    plain = datasets.Dataset.from_dict({'text': ['a', 'b'], 'label': [1, 0]})
    for format in ('torch', 'numpy'):
        assert read(named.with_format(format)) == [(('a',), 'yes', None), (('b',), 'no', None)]
        assert read(plain.with_format(format)) == [(('a',), 1, None), (('b',), 0, None)]


def test_the_splits_of_a_data_set_are_named():
    datasets = pytest.importorskip('datasets')
    split = datasets.Dataset.from_dict({'text': ['a'], 'label': [1]})
    with pytest.raises(DataError, match=r"the data has the splits train, test: give one of them, .*\['train'\]"):
        read(datasets.DatasetDict({'train': split, 'test': split}))


# documents


def test_documents_pass_as_they_are():
    documents = [
        Document(text='a', tags={LABEL: 1}),
        Document(tensor=np.zeros(3)),
        Document(chunks=[Content(text='a'), Content(text='b')], tags={SCORE: 1}),
    ]
    assert list(read_data(documents)) == documents
    assert list(read_data(DocumentArray(documents))) == documents
    assert list(read_data(iter(documents), CSVOptions(size=2))) == documents[:2]


def test_points_are_a_mesh_for_a_model_of_meshes():
    document = Document(tensor=np.zeros((5, 3)))
    assert next(read_data([document], task='mesh-to-mesh')).modality == 'mesh'
    assert next(read_data([document])).modality is None is document.modality


def test_what_is_no_data_is_named():
    with pytest.raises(DataError, match='the data is of type int: give the path of a CSV, JSONL'):
        read_data(3)
    with pytest.raises(DataError, match='item 1 of the data is of type str: give the path'):
        list(read_data([Document(text='a'), 'b']))


@pytest.mark.parametrize('kind', ['csv', 'jsonl', 'parquet'])
def test_all_kinds_are_sampled_alike(table, lines, columns, kind):
    rows = [(f'text {n}', f'kind {n % 2}') for n in range(200)]
    path = {
        'csv': lambda: table([('text', 'label'), *rows]),
        'jsonl': lambda: lines(*({'text': text, 'label': label} for text, label in rows)),
        'parquet': lambda: columns(dict(zip(('text', 'label'), map(list, zip(*rows, strict=True)), strict=True))),
    }[kind]()
    expected = read(io.StringIO('\n'.join(map(','.join, rows))), sampling_rate=0.3, seed=2)
    assert 30 < len(expected) < 90
    assert read(path, sampling_rate=0.3, seed=2) == expected
    assert read(path, sampling_rate=0.3, seed=2, size=7) == expected[:7]
    ids = [document.id for document in read_data(path)]
    assert ids == [document.id for document in read_data(io.StringIO('\n'.join(map(','.join, rows))))]
