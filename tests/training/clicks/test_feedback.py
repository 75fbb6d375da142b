from __future__ import annotations

import math

import numpy as np
import pytest

from registry.click_records import ClickEvent
from tests.training.clicks.conftest import TIME, feedback, session
from training.clicks.confidence import windowed_confidences


def test_clicked_is_wanted_and_shown_is_not():
    (entry,) = feedback(session('Red  shoes', 'abcd', 'ca'))
    assert entry.items == list('abcd') and entry.clicks.tolist() == [1, 0, 1, 0]
    assert entry.positions.tolist() == [0, 1, 2, 3] and not entry.is_irrelevant
    assert entry.query == 'Red  shoes' and entry.key == 'red shoes'


def test_a_session_without_a_query_or_results_says_nothing():
    assert feedback(session('  ', 'ab', 'a'), session('q', [], [])) == []


def test_an_item_that_is_shown_twice_counts_where_it_came_first():
    (entry,) = feedback(session('q', 'abac', 'a'))
    assert entry.items == list('abc') and entry.positions.tolist() == [0, 1, 3] and entry.clicks.tolist() == [1, 0, 0]


def test_events_of_what_was_not_shown_are_left_out():
    (entry,) = feedback(session('q', 'ab', 'z'))
    assert not entry.clicks.any()


def test_events_weigh_by_type_and_importance():
    events = [
        ClickEvent('1', 'a', 'click', TIME),
        ClickEvent('2', 'a', 'purchase', TIME),
        ClickEvent('3', 'b', 'click', TIME, {'importance': 0.5}),
        ClickEvent('4', 'c', 'hover', TIME),
        ClickEvent('5', 'd', 'purchase', TIME, {'importance': 'high'}),
        ClickEvent('6', 'e', 'click', TIME, {'importance': -1}),
    ]
    (entry,) = feedback(session('q', 'abcdef', events=events), event_weights={'click': 1, 'purchase': 3})
    assert entry.clicks.tolist() == [3, 0.5, 0, 3, 1, 0]
    (entry,) = feedback(session('q', 'abcdef', events=events))
    assert entry.clicks.tolist() == [1, 0.5, 1, 1, 1, 0]


def test_the_mark_of_irrelevance_counts_more_than_clicks():
    marked, empty = session('q', 'ab', 'a', irrelevant=True), session('q', 'ab')
    entries = feedback(marked, empty)
    assert [entry.is_irrelevant for entry in entries] == [True, False]
    assert not entries[0].clicks.any()
    assert [entry.is_irrelevant for entry in feedback(empty, clickless_is_irrelevant=True)] == [True]


def test_ranks_are_those_of_the_search_or_not_known():
    one, two = feedback(session('q', 'ab', ranks=[0.5, 0.25]), session('q', 'ab'))
    assert one.ranks.tolist() == [0.5, 0.25] and np.isnan(two.ranks).all()


def test_windowed_confidences_by_hand():
    """Three results of the ranks 0.8, 0.6 and 0.1, the second clicked."""

    def place(i):
        return math.exp(-3 * (i + 1) / 3 - 0.3) + 0.25

    a = 0.7 + 1e-9, 0.5 + 1e-9, 0.35 + 1e-9
    s = abs(0.8 - a[0]) / a[0], abs(0.6 - a[1]) / a[1], abs(0.1 - a[2]) / a[2]
    cp = 0.5, 1 / 3, 0.5
    raw = [
        ((1 - cp[0]) * (1 - s[0]) + cp[0] * s[0]) * place(0),
        ((1 - s[1]) * cp[1] + (1 - cp[1]) * s[1]) * place(1),
        ((1 - cp[2]) * (1 - s[2]) + cp[2] * s[2]) * place(2),
    ]
    expected = [(value - min(raw)) / (max(raw) - min(raw)) for value in raw]
    assert windowed_confidences(np.array([0.8, 0.6, 0.1]), np.array([0, 1, 0])) == pytest.approx(expected, rel=1e-9)


def test_confidences_that_are_equal_are_one():
    assert windowed_confidences(np.array([0.5]), np.array([1])).tolist() == [1]
    assert windowed_confidences(np.array([]), np.array([])).tolist() == []
    many = windowed_confidences(np.ones(20), np.zeros(20))
    assert many[0] == 1 and many[-1] == 0 and (np.diff(many) <= 0).all(), 'what is shown late is less sure'
