import pytest

from executors.logs import LIMIT, read_log
from registry import Registry

LEASE = 'a' * 24


@pytest.fixture
def registry():
    with Registry.open() as registry:
        yield registry


@pytest.fixture
def run_id(registry):
    return registry.create_run(registry.get_account().id, 'default', 'run', {})[0].id


def test_reads_from_an_offset_to_the_next(registry, run_id):
    registry.append_log(run_id, LEASE, 0, b'first\n')
    text, offset = read_log(registry, run_id, 0)
    assert (text, offset) == ('first\n', 6)
    registry.append_log(run_id, LEASE, 6, b'second\n')
    assert read_log(registry, run_id, offset) == ('second\n', 13)
    assert read_log(registry, run_id, 13) == ('', 13)


def test_a_log_that_is_not_there_yet_is_empty(registry, run_id):
    assert read_log(registry, run_id, 0) == ('', 0)


def test_a_character_that_is_half_written_waits(registry, run_id):
    whole = 'é🚀'.encode()
    registry.append_log(run_id, LEASE, 0, whole[:4])
    assert read_log(registry, run_id, 0) == ('é', 2)
    registry.append_log(run_id, LEASE, 4, whole[4:])
    assert read_log(registry, run_id, 2) == ('🚀', 6)


def test_bytes_that_are_no_text_do_not_stop_the_reader(registry, run_id):
    registry.append_log(run_id, LEASE, 0, b'a\xff\xfeb')
    assert read_log(registry, run_id, 0) == ('a��b', 4)


def test_a_long_log_comes_in_pieces(registry, run_id):
    content = '🚀x' * (LIMIT // 3)
    data = content.encode()
    for start in range(0, len(data), 100_000):
        registry.append_log(run_id, LEASE, start, data[start : start + 100_000])
    read, offset = '', 0
    while True:
        piece, offset = read_log(registry, run_id, offset)
        if not piece:
            break
        assert len(piece.encode()) <= LIMIT
        read += piece
    assert read == content
