"""Ragged rows on disk."""

from __future__ import annotations

import pickle
import resource

import numpy as np
import pytest

from training.rows import Rows, RowsWriter

RNG = np.random.default_rng(0)


def write(directory, rows, dtype, tail=()):
    with RowsWriter(directory, dtype, tail) as writer:
        for start in range(0, len(rows), 3):
            writer.append(rows[start : start + 3])
    return Rows(directory)


@pytest.mark.parametrize('dtype, tail', [('int32', ()), ('uint8', (40, 3)), ('float32', (3,)), ('float16', (200, 2))])
def test_rows_come_back_as_they_were_written(tmp_path, dtype, tail):
    arrays = [(RNG.random((length, *tail)) * 100).astype(dtype) for length in (3, 1, 0, 7, 2, 5, 4)]
    rows = write(tmp_path / 'rows', arrays, dtype, tail)

    assert len(rows) == 7
    assert rows.dtype == dtype and rows.tail == tail
    for number, array in enumerate(arrays):
        np.testing.assert_array_equal(rows[number], array)
    np.testing.assert_array_equal(rows[-1], arrays[-1])

    ids = np.array([5, 0, 2, 0, 3])
    lengths = rows.lengths(ids)
    assert lengths.dtype == np.int64 and lengths.tolist() == [5, 3, 0, 3, 7]
    for row, number in zip(rows.take(ids), ids, strict=True):
        np.testing.assert_array_equal(row, arrays[number])
    np.testing.assert_array_equal(rows.concatenated(ids), np.concatenate([arrays[i] for i in ids]))
    assert rows.concatenated(np.array([], np.int64)).shape == (0, *tail)
    with pytest.raises(IndexError, match='row 7 of 7'):
        rows[7]


def test_rows_of_length_one_are_gathered_as_a_copy(tmp_path):
    arrays = [RNG.random((1, 6)).astype('float32') for _ in range(10)]
    rows = write(tmp_path / 'rows', arrays, 'float32', (6,))
    ids = np.array([9, 0, 9, 4])
    taken = rows.concatenated(ids)
    np.testing.assert_array_equal(taken, np.concatenate([arrays[i] for i in ids]))
    taken[:] = 0  # the files stay as they are
    assert rows[9].any()
    assert not rows[9].flags.writeable


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    write(tmp_path / 'rows', [np.arange(3, dtype=np.int32)], 'int32')
    with pytest.raises(RuntimeError), RowsWriter(tmp_path / 'rows', 'int32') as writer:
        writer.append([np.arange(9, dtype=np.int32)])
        assert Rows(tmp_path / 'rows')[0].tolist() == [0, 1, 2]
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ['rows']
    assert len(Rows(tmp_path / 'rows')) == 1

    held = Rows(tmp_path / 'rows')
    write(tmp_path / 'rows', [np.arange(5, dtype=np.int32)] * 2, 'int32')
    assert [path.name for path in tmp_path.iterdir()] == ['rows']
    assert held[0].tolist() == [0, 1, 2]  # who has the old rows open keeps them
    assert Rows(tmp_path / 'rows')[1].tolist() == [0, 1, 2, 3, 4]


def test_no_rows_at_all(tmp_path):
    rows = write(tmp_path / 'rows', [], 'float32', (3,))
    assert len(rows) == 0


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'row 1 has the shape \[2, 4\]'), RowsWriter(tmp_path / 'a', 'f4', (3,)) as w:
        w.append([np.zeros((2, 3), 'f4'), np.zeros((2, 4), 'f4')])
    with pytest.raises(ValueError, match='row 0 is float32, not int32'), RowsWriter(tmp_path / 'a', 'i4') as w:
        w.append([np.zeros(2, 'f4')])
    with pytest.raises(ValueError, match='holds no rows'):
        Rows(tmp_path / 'a')
    write(tmp_path / 'b', [np.zeros(4, 'i4')] * 2, 'i4')
    data = tmp_path / 'b' / 'data.int32'
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(ValueError, match='not complete'):
        Rows(tmp_path / 'b')


def test_selected_rows_are_rows(tmp_path):
    arrays = [np.full(length, length, np.int32) for length in (1, 2, 3, 4)]
    rows = write(tmp_path / 'rows', arrays, 'int32').select(np.array([3, 0, 3, 1]))
    assert [row.tolist() for row in rows.take(np.arange(4))] == [[4] * 4, [1], [4] * 4, [2] * 2]
    again = pickle.loads(pickle.dumps(rows.select(np.array([2, 1]))))
    assert len(again) == 2 and again.lengths(np.arange(2)).tolist() == [4, 1]


def test_rows_go_to_other_processes_as_their_path(tmp_path):
    rows = write(tmp_path / 'rows', [np.arange(1000, dtype=np.int32)] * 50, 'int32')
    pickled = pickle.dumps(rows)
    assert len(pickled) < 500
    assert pickle.loads(pickled)[49].tolist() == list(range(1000))


def test_writing_takes_constant_memory(tmp_path):
    block = [np.zeros((100_000, 3), 'float32')] * 10  # 12 MB
    with RowsWriter(tmp_path / 'rows', 'float32', (3,)) as writer:
        writer.append(block)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(20):
            writer.append(block)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 24_000  # kB, of 240 MB written
    assert len(Rows(tmp_path / 'rows')) == 210
