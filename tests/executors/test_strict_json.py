"""Bodies as JSON to the letter."""

import json
import time

import pytest
from fastapi.exceptions import HTTPException

from executors.strict_json import MAX_DEPTH, load_json


@pytest.mark.parametrize(
    ('raw', 'value'),
    [
        (b'', {}),
        (b'{"a": [1, 2.5, null, true, "\\u00fc\\ud83d\\ude42"]}', {'a': [1, 2.5, None, True, 'ü🙂']}),
        (b'\xef\xbb\xbf{}', {}),
        (b'{"a": {"a": 1}, "b": {"a": 1}}', {'a': {'a': 1}, 'b': {'a': 1}}),
        (b'[' * MAX_DEPTH + b']' * MAX_DEPTH, None),
    ],
)
def test_what_is_json_is_read(raw, value):
    found = load_json(raw)
    assert value is None or found == value


@pytest.mark.parametrize(
    ('raw', 'reason'),
    [
        (b'{"a": 1, "a": 2}', "'a' occurs twice in one object"),
        (b'[NaN]', 'NaN is not a number'),
        (b'{"a": "\\udc00"}', 'half a character'),
        (b'{"\\ud800": 1}', 'half a character'),
        (b'"\xff"', 'it is not UTF-8 at byte 1'),
        (b'9' * 5000, 'too many digits'),
        (b'[' * (MAX_DEPTH + 1) + b']' * (MAX_DEPTH + 1), 'nests deeper than 64 levels'),
        (b'[' * 100_000, 'nests too deep'),
        (b'{"a": 1', 'Expecting'),
    ],
)
def test_what_is_not_is_refused_with_a_reason(raw, reason):
    with pytest.raises(HTTPException) as caught:
        load_json(raw)
    assert caught.value.status_code == 400
    assert reason in caught.value.detail


def test_a_name_that_occurs_twice_among_many_is_found_at_once():
    raw = json.dumps(dict.fromkeys(map(str, range(100_000)), 0)).encode()[:-1] + b', "99999": 0}'
    began = time.monotonic()
    with pytest.raises(HTTPException) as caught:
        load_json(raw)
    assert "'99999' occurs twice" in caught.value.detail
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    'raw',
    [b'{"data": [' + b'{},' * 200_000 + b'{}]}', b'[' + b'[],' * 2_000_000 + b'[]]', b'{"' + b'":1,"' * 1_000_001],
)
def test_what_would_grow_in_memory_is_refused_before_it_is_read(raw):
    start = time.perf_counter()
    with pytest.raises(HTTPException) as caught:
        load_json(raw)
    assert caught.value.status_code == 413
    assert 'send it in parts, or as protocol buffers' in caught.value.detail
    assert time.perf_counter() - start < 5


def test_brackets_in_texts_are_not_counted():
    text = '\\"{[: ' * 1_100_000
    assert load_json(json.dumps([text, {'a': text}]).encode()) == [text, {'a': text}]


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-le', 'utf-32', 'utf-32-be'])
def test_it_is_utf_8_and_nothing_else(encoding):
    with pytest.raises(HTTPException) as caught:
        load_json('{"a": 1}'.encode(encoding))
    assert caught.value.status_code == 400


def test_many_numbers_are_read_quickly():
    raw = b'[' + b','.join([b'0.25'] * 1_000_000) + b']'
    start = time.perf_counter()
    assert len(load_json(raw)) == 1_000_000
    assert time.perf_counter() - start < 10
