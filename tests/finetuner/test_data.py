from __future__ import annotations

import csv
import io
import itertools
import tracemalloc

import pytest

from finetuner.data import CSVOptions, read_csv, read_data
from finetuner.excepts import DataError

PAIRS = [
    ('Where is my card?', 'card'),
    ('It has not come', 'card'),
    ('Send money', 'transfer'),
    ('Pay him', 'transfer'),
]


def write(path, text, **options):
    path.write_text(text, **{'encoding': 'utf-8', 'newline': '', **options})
    return path


def rows(*arguments, **options):
    return [(document.text, document.tags['finetuner_label']) for document in read_csv(*arguments, **options)]


def as_csv(pairs, **options):
    file = io.StringIO(newline='')
    csv.writer(file, **options).writerows(pairs)
    return file.getvalue()


@pytest.fixture
def table(tmp_path):
    return tmp_path / 'table.csv'


def test_reads_content_and_label(table):
    write(table, as_csv(PAIRS))
    assert rows(table) == rows(str(table)) == PAIRS


def test_header_of_usual_names_is_skipped(table):
    write(table, as_csv([('text', 'category'), *PAIRS]))
    assert rows(table) == PAIRS


def test_header_of_unusual_names_is_skipped_where_labels_repeat(table):
    write(table, as_csv([('Äußerung', 'Bereich'), *PAIRS]))
    assert rows(table) == PAIRS


@pytest.mark.parametrize(
    'pairs',
    [
        [('text', 'label'), ('other', 'label')],  # the label occurs again
        [('Is this text?', 'label'), *PAIRS],  # a sentence
        [('one', 'alpha'), ('two', 'beta'), ('three', 'gamma')],  # no label repeats, no usual name
        [('3.5', 'category'), *PAIRS],  # a number
        [('a text of four words', 'label'), *PAIRS],
    ],
)
def test_first_row_that_may_be_data_is_kept(table, pairs):
    write(table, as_csv(pairs))
    assert rows(table) == pairs


def test_header_option_overrules_the_guess(table):
    write(table, as_csv([('text', 'category'), *PAIRS]))
    assert rows(table, CSVOptions(header=False)) == [('text', 'category'), *PAIRS]
    assert rows(table, CSVOptions(header=True)) == PAIRS


@pytest.mark.parametrize('delimiter', ',\t;|')
def test_delimiter_is_found(table, delimiter):
    pairs = [*PAIRS, ('commas, here; and\tthere | too', 'marks')]
    write(table, as_csv(pairs, delimiter=delimiter))
    assert rows(table) == pairs


def test_comma_wins_where_the_delimiter_is_ambiguous(table):
    write(table, 'a;b,c\nd;e,c\n')
    assert rows(table) == [('a;b', 'c'), ('d;e', 'c')]


def test_options_are_not_changed_by_a_file(tmp_path):
    """Upstream kept the dialect of the first file for all others."""
    options = CSVOptions()
    first = write(tmp_path / 'first.csv', as_csv(PAIRS, delimiter='\t'))
    second = write(tmp_path / 'second.csv', as_csv(PAIRS))
    assert rows(first, options) == rows(second, options) == PAIRS
    assert options == CSVOptions()


def test_named_dialect(table):
    write(table, as_csv(PAIRS, dialect='excel-tab'))
    assert rows(table, CSVOptions(dialect='excel-tab')) == PAIRS
    assert rows(table, CSVOptions(dialect=csv.excel_tab)) == PAIRS


def test_quotes_and_newlines_in_cells(table):
    pairs = [('She said "no",\nand left', 'a'), ('line\r\nbreak', 'a'), ('it is 5" long', 'b')]
    write(table, as_csv(pairs))
    assert rows(table) == pairs


def test_byte_order_mark_and_blank_lines(table):
    write(table, '\ufeff\r\nWhere?,card\r\n\r\n ,\r\nWhen?,card\r\n')
    assert rows(table) == [('Where?', 'card'), ('When?', 'card')]


@pytest.mark.parametrize('encoding', ['utf-16', 'latin-1', 'utf-8-sig'])
def test_encodings(table, encoding):
    write(table, 'Grüße,à\nGrüße,à\n', encoding=encoding)
    assert rows(table, CSVOptions(encoding=encoding)) == [('Grüße', 'à'), ('Grüße', 'à')]


def test_open_files_and_streams(table):
    write(table, as_csv(PAIRS))
    with table.open(newline='') as file:
        assert rows(file) == PAIRS
        assert not file.closed
    assert rows(io.StringIO(as_csv(PAIRS))) == PAIRS


def test_labels_are_stripped_and_texts_kept(table):
    write(table, ' Where? , card\nWhen?,card \n')
    assert rows(table) == [(' Where? ', 'card'), ('When?', 'card')]


def test_size_and_sampling(table):
    pairs = [(f'text {number}', 'even' if number % 2 == 0 else 'odd') for number in range(1000)]
    write(table, as_csv(pairs))
    assert rows(table, CSVOptions(size=3)) == pairs[:3]
    half = rows(table, CSVOptions(sampling_rate=0.5))
    assert 400 < len(half) < 600 and set(half) < set(pairs)
    assert half == rows(table, CSVOptions(sampling_rate=0.5)) != rows(table, CSVOptions(sampling_rate=0.5, seed=1))
    assert rows(table, CSVOptions(sampling_rate=0)) == []
    assert rows(table, CSVOptions(sampling_rate=1)) == pairs


def test_ids_follow_from_the_content(tmp_path):
    pairs = [*PAIRS, PAIRS[0]]
    one = list(read_csv(write(tmp_path / 'one.csv', as_csv(pairs))))
    other = list(read_csv(write(tmp_path / 'other.csv', as_csv([('text', 'label'), *pairs], delimiter=';'))))
    assert [document.id for document in one] == [document.id for document in other]
    assert len({document.id for document in one}) == len(pairs)


def test_long_files_are_read_in_constant_memory():
    lines = (f'text number {number},label {number % 7}\n' for number in itertools.count())

    class Endless(io.TextIOBase):
        def readline(self, size=-1):
            return next(lines)

    documents = read_csv(Endless())
    next(documents)
    tracemalloc.start()
    for _ in itertools.islice(documents, 20_000):
        pass
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 2 << 20


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a,x\nb\n', 'line 2: 1 column where two are expected'),
        ('a,x\nb,y,z\n', 'line 2: 3 columns where two are expected'),
        ('a,x\n"two\nlines",x\n,y\n', 'line 4, column 1: the text is empty'),
        ('a,x\nb, \n', 'line 2, column 2: the label is empty'),
        ('a,x\nb,x\n"open,x\nc,x\n', 'line 3: the row cannot be read'),
        ('a,x\n"b" c,x\n', 'line 2: the row cannot be read'),
        ('', 'is empty'),
        ('\n\n', 'is empty'),
    ],
)
def test_malformed_rows_name_the_place(table, text, message):
    write(table, text)
    with pytest.raises(DataError) as caught:
        rows(table, CSVOptions(header=False))
    assert str(table) in str(caught.value) and message in str(caught.value)


def test_cells_may_be_long_and_not_endless(table):
    long = 'x' * (1 << 20)
    write(table, f'{long},a\nb,a\n')
    assert rows(table, CSVOptions(header=False))[0] == (long, 'a')
    write(table, f'b,a\n{long * 17},a\n')
    with pytest.raises(DataError, match='line 2: a cell is longer than 16 Mi characters'):
        rows(table, CSVOptions(header=False))


def test_header_alone_is_an_error(table):
    write(table, 'text,label\n')
    with pytest.raises(DataError, match='has a header .* and no rows'):
        rows(table)


def test_rows_before_a_malformed_one_are_yielded(table):
    write(table, 'a,x\nb,x\nc\n')
    documents = read_csv(table)
    assert [next(documents).text, next(documents).text] == ['a', 'b']
    with pytest.raises(DataError, match='line 3'):
        next(documents)


def test_missing_file_is_an_error_at_once(tmp_path):
    with pytest.raises(DataError, match='nowhere.csv does not exist'):
        read_csv(tmp_path / 'nowhere.csv')
    with pytest.raises(DataError, match='is a folder'):
        read_csv(tmp_path)


def test_wrong_encoding_names_the_line(table):
    lines = [b'plain,x'] * 3000 + ['Grüße,x'.encode('latin-1')] + [b'plain,x'] * 10
    table.write_bytes(b'\n'.join(lines))
    with pytest.raises(DataError, match=r"table.csv, line 3001: the file is not utf-8 .*encoding='latin-1'"):
        rows(table)
    write(table, 'a,x\n', encoding='utf-16')
    with pytest.raises(DataError, match=r"line 1: the file is not utf-8 .*encoding='utf-16'"):
        rows(table)


def test_binary_file_is_refused(table):
    write(table, 'a,x\n')
    with table.open('rb') as file, pytest.raises(DataError, match='binary mode'):
        rows(file)


def test_a_file_of_one_column_or_ragged_rows_is_read_from_its_start(table):
    """Upstream's sniffer left the file at its end, and said that it was empty."""
    write(table, 'alone\nagain\n')
    with pytest.raises(DataError, match='line 1: 1 column where two are expected'):
        rows(table)
    write(table, 'a,x\nb,x\nc,x,y,z\n')
    with pytest.raises(DataError, match='line 3: 4 columns where two are expected, content and label'):
        rows(table)


@pytest.mark.parametrize('opened', [False, True])
def test_a_file_of_any_kind_of_handle_is_parsed(table, opened):
    """Upstream gave an open file back as it was."""
    write(table, as_csv(PAIRS))
    with table.open(newline='') as file:
        documents = read_data(file if opened else table)
        assert [document.text for document in documents] == [text for text, _ in PAIRS]


def test_a_mistyped_path_is_no_name_of_a_data_set(tmp_path):
    """Upstream took a path that was not there for a name in its cloud."""
    with pytest.raises(DataError, match='trian.csv does not exist'):
        read_data(str(tmp_path / 'trian.csv'))


def test_options_are_not_needed(table):
    """Upstream failed without them."""
    write(table, as_csv(PAIRS))
    assert len(list(read_csv(table, None))) == len(list(read_data(table, None))) == len(PAIRS)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'size': 0}, 'size is 0'),
        ({'size': 2.5}, 'size is 2.5'),
        ({'sampling_rate': 1.5}, 'sampling_rate is 1.5'),
        ({'dialect': 'exel'}, "dialect 'exel' is unknown: choose one of auto, excel"),
        ({'encoding': 'utf-9'}, "encoding 'utf-9' is unknown"),
        ({'point_cloud_size': 8}, 'point_cloud_size is 8: give a whole number from 16'),
        ({'columns': {'contents': 'a'}}, "give a dict of 'content', 'label', 'score'"),
        ({'columns': {'label': 'a'}}, "'content' is one column, or a list of two or three"),
        ({'columns': {'content': 0}}, '0 is neither a name nor a number from 1'),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(DataError, match=message):
        CSVOptions(**options)


def test_whole_numbers_of_json_are_taken_as_such():
    assert CSVOptions(size=3.0).size == 3
    assert CSVOptions(columns={'content': [1.0, 'b'], 'score': 3.0}).chosen_columns() == ([1, 'b'], None, 3)
