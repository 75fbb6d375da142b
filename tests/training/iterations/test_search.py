"""Which parameters are tried, and in which order."""

import errno
import os
from types import SimpleNamespace

import pytest

from training.errors import CallbackError
from training.iterations import iteration
from training.iterations.iteration import Trials
from training.iterations.parameters import name_of, write
from training.iterations.search import ParameterSearch
from training.iterations.tracking import FINISHED, PRUNED, Training
from training.methods.method import Search

SEARCH = Search.model_validate(
    {'evaluations': 6, 'space': {'learning_rate': {'low': 1e-6, 'high': 1e-3, 'log': True}, 'freeze': [0, 2, 4]}}
)


def quality(values):
    return 1 - abs(values['learning_rate'] - 1e-4) * 1e3 - values['freeze'] / 100


def run(search, limit=100):
    tried = []
    while len(tried) < limit and (candidate := search.ask()) is not None:
        tried.append(candidate.parameters)
        search.tell(candidate, quality(candidate.parameters))
    return tried


def training(values, outcome, value):
    return Training(name_of(values), name_of(values), write(values), outcome, value, False)


def test_so_many_different_ones_are_tried_in_an_order_that_the_seed_gives():
    first = [{'learning_rate': 1e-5, 'freeze': 2}]
    tried = run(ParameterSearch(SEARCH, 0, first=first))
    assert len({name_of(values) for values in tried}) == len(tried) == 6 and tried[0] == first[0]
    assert all(1e-6 <= values['learning_rate'] <= 1e-3 and values['freeze'] in (0, 2, 4) for values in tried)
    assert run(ParameterSearch(SEARCH, 0, first=first)) == tried != run(ParameterSearch(SEARCH, 1, first=first))


def test_a_space_that_is_exhausted_ends_the_search():
    small = Search.model_validate({'evaluations': 9, 'space': {'freeze': [0, 1]}})
    search = ParameterSearch(small, 0)
    found = []
    while (candidate := search.ask()) is not None:
        found.append(candidate.parameters['freeze'])
        search.tell(candidate, 0.5)
    assert sorted(found) == [0, 1]
    empty = ParameterSearch(Search(evaluations=3), 0)
    only = empty.ask()
    assert only.parameters == {}
    empty.tell(only, 0.1)
    assert empty.ask() is None


def test_what_a_lost_worker_has_tried_is_not_tried_again():
    tried = run(ParameterSearch(SEARCH, 0), limit=3)
    known = [training(tried[0], FINISHED, 0.5), training(tried[1], PRUNED, 0.1), training(tried[2], None, None)]
    rest = run(ParameterSearch(SEARCH, 0, known, first=[tried[2]]))
    assert rest[0] == tried[2], 'it had not come to its end'
    assert len(rest) == 4 and not {name_of(values) for values in rest} & {name_of(values) for values in tried[:2]}


def test_a_training_that_fails_counts_as_one():
    search = ParameterSearch(SEARCH, 0)
    for _ in range(6):
        search.tell(search.ask(), None)
    assert search.ask() is None


def test_a_training_that_is_worse_than_those_before_is_hopeless_but_not_in_its_first_epoch():
    search = ParameterSearch(SEARCH, 0)
    for _ in range(2):
        candidate = search.ask()
        assert not any(candidate.is_hopeless(0.5 + epoch / 10, epoch) for epoch in (1, 2, 3))
        search.tell(candidate, 0.8)
    candidate = search.ask()
    assert not candidate.is_hopeless(0.1, 1)
    assert candidate.is_hopeless(0.1, 2)
    search.tell(candidate, 0.1, is_pruned=True)
    assert not search.ask().is_hopeless(0.9, 2)


def test_a_helper_judges_by_what_it_is_told_of_those_before():
    before = [training({'learning_rate': rate, 'freeze': 0}, FINISHED, 0.8) for rate in (1e-5, 1e-4)]
    epochs = {known.name: {1: 0.6, 2: 0.7, 3: 0.8} for known in before}
    tried = {'learning_rate': 1e-3, 'freeze': 4}
    candidate = ParameterSearch(SEARCH, 0, before, [tried], epochs).ask()
    assert candidate.parameters == tried
    assert not candidate.is_hopeless(0.1, 1) and not candidate.is_hopeless(0.75, 2)
    other = ParameterSearch(SEARCH, 0, before, [tried], epochs).ask()
    assert other.is_hopeless(0.65, 2)


def test_several_at_once_are_different_and_no_more_than_are_left():
    search = ParameterSearch(SEARCH, 0)
    rounds = []
    while candidates := search.ask_several(4):
        rounds.append(len(candidates))
        for candidate in candidates:
            search.tell(candidate, quality(candidate.parameters))
    assert rounds == [4, 2]


def test_a_fault_of_the_machine_is_no_failed_training(monkeypatch):
    def fail(setting, candidate):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise CallbackError('the callback TrainingCheckpoint failed in on_batch_end') from error

    monkeypatch.setattr(iteration, 'train', fail)
    monkeypatch.setattr(iteration, 'find_helper', lambda setting, candidate: None)
    method = SimpleNamespace(search=SEARCH, metric='ndcg_at_10')
    setting = SimpleNamespace(method=method, seed=0, iteration=SimpleNamespace(trainings=list))
    with pytest.raises(CallbackError):
        Trials(setting).run(None)
