from __future__ import annotations

import pytest

from finetuner.excepts import DataError
from tests.training.clicks.conftest import feedback, session
from training.clicks.split import split_sessions


def names(entries):
    return [entry.session_id for entry in entries]


def test_no_query_is_on_both_sides(simulate):
    sessions = simulate(600)
    split = split_sessions(sessions, 0.25, seed=1)
    assert not {entry.key for entry in split.train} & {entry.key for entry in split.test}
    assert len(split.train) + len(split.test) == 600 and 120 <= len(split.test) <= 180
    seen, shown = ({item for entry in part for item in entry.items} for part in (split.train, split.test))
    assert split.shared_items == len(seen & shown) / len(shown) > 0.9, (
        'all that is shown hangs together, and it is told'
    )


def test_queries_that_differ_in_case_and_spaces_are_one():
    sessions = feedback(session('Red shoes', 'ab', 'a'), session(' red  SHOES', 'ab', 'a'), session('hat', 'ab', 'b'))
    for seed in range(20):
        split = split_sessions(sessions, 0.4, seed)
        assert {entry.key for entry in split.train} & {entry.key for entry in split.test} == set()


def test_no_item_is_on_both_sides_where_they_can_be_parted():
    sessions = []
    for group in range(10):
        items = [f'{group}{letter}' for letter in 'abcd']
        sessions += [
            session(f'query {group} {number}', items[number % 2 : 3 + number % 2], items[2:3]) for number in range(4)
        ]
    for seed in range(5):
        split = split_sessions(feedback(*sessions), 0.2, seed)
        assert split.shared_items == 0 and len(split.test) == 8
        seen, shown = ({item for entry in part for item in entry.items} for part in (split.train, split.test))
        assert not seen & shown


def test_the_seed_alone_decides(simulate):
    sessions = simulate(600, spread=1.0)
    one, again, other = (split_sessions(sessions, 0.2, seed) for seed in (1, 1, 2))
    assert names(one.test) == names(again.test) != names(other.test)


def test_a_share_leaves_something_on_both_sides():
    sessions = feedback(session('a', 'ab', 'a'), session('b', 'ab', 'a'), session('c', 'ab', 'a'))
    for share in (0.01, 0.5, 0.99):
        split = split_sessions(sessions, share)
        assert split.train and split.test


@pytest.mark.parametrize(
    ('count', 'sentence'),
    [
        (0, 'there are no sessions: those of at least 2 different queries are needed to split'),
        (1, 'the only session is of one query: those of at least 2 different queries are needed to split'),
        (3, 'all 3 sessions are of one query: those of at least 2 different queries are needed to split'),
    ],
)
def test_sessions_of_one_query_are_not_split(count, sentence):
    with pytest.raises(DataError, match=sentence):
        split_sessions(feedback(*(session('a', 'ab', 'a') for _ in range(count))))
