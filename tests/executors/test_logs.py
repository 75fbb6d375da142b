import asyncio

import pytest

from executors import logs, trainer
from executors.api.logs import _lines
from executors.logs import LIMIT, read_log
from executors.trainer import TrainerExecutor
from finetuner.documents import Document
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


@pytest.mark.parametrize('limit', [4, LIMIT])
@pytest.mark.parametrize(
    ('log', 'events'),
    [
        (b'ok\n\xff\xff\xff\nlast\n', {3: 'ok', 7: '\ufffd' * 3, 12: 'last'}),
        ('é\r\n\ufffd\n'.encode() + b'\xe2\x82\r\xf0\x9fx\n', {4: 'é', 8: '\ufffd', 11: '\ufffd', 15: '\ufffdx'}),
    ],
)
def test_ids_of_events_are_bytes_of_the_log_whatever_it_holds(registry, run_id, monkeypatch, log, events, limit):
    monkeypatch.setattr(logs, 'LIMIT', limit)
    monkeypatch.setattr(trainer, 'POLL', 0.01)
    monkeypatch.setattr(trainer, 'LAST_WORDS', 0)
    registry.append_log(run_id, LEASE, 0, log)
    registry.cancel_run(run_id, 'the end')
    executor = TrainerExecutor()
    tags = {'run_name': 'run', 'token': registry.create_token(registry.get_account().id, 'test')}

    async def stream(offset):
        pieces = executor.logstream(Document(tags={**tags, 'offset': offset}))
        return [event async for event in _lines(pieces)]

    try:
        for seen in (0, *events):
            expected = [f'id: {offset}\ndata: {line}\n\n' for offset, line in events.items() if offset > seen]
            assert asyncio.run(stream(seen)) == expected
    finally:
        executor.close()


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


def test_a_log_of_an_earlier_version_is_read(registry, run_id):
    content = b'a line\n' * 100_000
    path = registry.run_directory(run_id) / 'log.txt'
    path.write_bytes(content)
    executor = TrainerExecutor()
    executor.close()
    assert registry.read_log(run_id, 0, 1 << 20) == content
    assert not path.exists()
    registry.append_log(run_id, LEASE, 0, b'resumed')
    assert registry.read_log(run_id, len(content), 100) == b'resumed'
