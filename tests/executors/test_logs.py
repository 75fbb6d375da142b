from executors.logs import LIMIT, read_log


def test_reads_from_an_offset_to_the_next(tmp_path):
    path = tmp_path / 'log.txt'
    path.write_text('first\n')
    text, offset = read_log(path, 0)
    assert (text, offset) == ('first\n', 6)
    with path.open('a') as file:
        file.write('second\n')
    assert read_log(path, offset) == ('second\n', 13)
    assert read_log(path, 13) == ('', 13)


def test_a_log_that_is_not_there_yet_is_empty(tmp_path):
    assert read_log(tmp_path / 'log.txt', 0) == ('', 0)


def test_a_character_that_is_half_written_waits(tmp_path):
    path = tmp_path / 'log.txt'
    whole = 'é🚀'.encode()
    path.write_bytes(whole[:4])
    assert read_log(path, 0) == ('é', 2)
    path.write_bytes(whole)
    assert read_log(path, 2) == ('🚀', 6)


def test_bytes_that_are_no_text_do_not_stop_the_reader(tmp_path):
    path = tmp_path / 'log.txt'
    path.write_bytes(b'a\xff\xfeb')
    assert read_log(path, 0) == ('a��b', 4)


def test_a_long_log_comes_in_pieces(tmp_path):
    path = tmp_path / 'log.txt'
    content = '🚀x' * (LIMIT // 3)
    path.write_text(content)
    read, offset = '', 0
    while True:
        piece, offset = read_log(path, offset)
        if not piece:
            break
        assert len(piece.encode()) <= LIMIT
        read += piece
    assert read == content
