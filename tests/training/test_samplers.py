from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuner.excepts import DataError
from training.config import FitConfig
from training.samplers import ClassSampler, RandomSampler, make_sampler

sizes = st.lists(st.integers(1, 40), min_size=2, max_size=30).filter(lambda found: max(found) > 1)


def labels_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)


@given(sizes, st.integers(2, 64), st.integers(2, 8), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_class_sampler_on_any_data(sizes, batch_size, num_items_per_class, epoch):
    labels = labels_of(sizes)
    sampler = ClassSampler(labels, batch_size, num_items_per_class, seed=1)
    batches = list(sampler.batches(epoch))
    assert len(batches) == len(sampler)
    seen = np.bincount(np.concatenate(batches), minlength=len(labels))
    alone = sum(len(set(labels[batch])) == 2 for batch in batches)  # one class was left, and another drawn again
    assert (seen == 0).sum() <= sampler.items_per_class * alone, 'others wait for another epoch only for that'
    redrawn = sampler.items_per_class * (len(sizes) + sum(len(set(labels[batch])) == 2 for batch in batches))
    assert seen.sum() <= len(labels) + redrawn, 'about once'
    for batch in batches:
        assert len(set(labels[batch])) >= 2, 'a batch has negatives'
        assert len(batch) <= max(batch_size, 4)
    for one, two in zip(batches, sampler.batches(epoch), strict=True):
        assert (one == two).all(), 'the same epoch again is the same'


@given(st.integers(8, 30), st.integers(4, 20), st.sampled_from([(16, 4), (32, 4), (8, 2), (24, 3)]))
@settings(max_examples=100, deadline=None)
def test_equal_classes_give_exact_batches(classes, size, batch):
    batch_size, per_class = batch
    labels = labels_of([size] * classes)
    batches = list(ClassSampler(labels, batch_size, per_class).batches(1))
    repeats = 0
    for rows in batches[:-1]:
        counts = np.bincount(labels[rows])
        is_repeated = bool((counts > per_class).any())
        repeats += is_repeated
        assert len(rows) == batch_size
        assert set(counts[counts > 0] % per_class) == {0}
        assert is_repeated or len(set(rows)) == batch_size
    assert repeats <= max(2, len(batches) // 4), 'a class is met twice in the last batches only'


def test_a_batch_holds_each_class_once_where_classes_are_many():
    labels = labels_of([12] * 77)
    for rows in list(ClassSampler(labels, 64, 4).batches(1))[:-3]:
        counts = np.bincount(labels[rows])
        assert set(counts) == {0, 4}
        assert (counts == 4).sum() == 16


def test_epochs_and_seeds_differ():
    labels = labels_of([10] * 10)

    def first(seed, epoch):
        return tuple(next(ClassSampler(labels, 16, 4, seed).batches(epoch)))

    assert len({first(0, 1), first(0, 2), first(1, 1)}) == 3


def test_one_huge_class_leaves_negatives_in_every_batch():
    labels = labels_of([400, 3, 3])
    sampler = ClassSampler(labels, 16, 4)
    batches = list(sampler.batches(1))
    assert all(len(set(labels[batch])) >= 2 for batch in batches)
    assert sum(len(batch) for batch in batches) < 1.4 * len(labels)


@pytest.mark.parametrize(
    ('batch_size', 'per_class', 'classes', 'expected'),
    [(10, 4, 20, (4, 2)), (64, 4, 5, (12, 5)), (6, 4, 20, (3, 2)), (2, 4, 20, (2, 2))],
)
def test_what_does_not_fit_takes_the_nearest_values_and_says_so(caplog, batch_size, per_class, classes, expected):
    with caplog.at_level(logging.WARNING):
        sampler = ClassSampler(labels_of([20] * classes), batch_size, per_class)
    assert (sampler.items_per_class, sampler.classes_per_batch) == expected
    assert f'{expected[1]} classes with {expected[0]} items each' in caplog.text


def test_what_fits_says_nothing(caplog):
    ClassSampler(labels_of([20] * 20), 64, 4)
    assert not caplog.text


def test_one_class_is_refused():
    with pytest.raises(ValueError, match='has 1 class: at least 2 are needed'):
        ClassSampler(np.zeros(10, np.int32), 4)
    config = FitConfig(model='m', train_data='t')
    with pytest.raises(ValueError, match="the data set 'data' has 1 class: at least 2"):
        make_sampler(config, np.arange(10), examples_of(np.zeros(10, np.int32)), 4)


def test_classes_of_one_item_each_are_refused_unless_an_item_has_a_positive_in_itself():
    with pytest.raises(DataError, match='no two items of the training data have the same label'):
        ClassSampler(np.arange(3), 4)
    assert ClassSampler(np.arange(3), 4, least=1).items_per_class == 1


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 3))
def test_random_sampler_sees_every_row_once(rows, batch_size, epoch):
    sampler = RandomSampler(rows, batch_size, seed=3)
    batches = list(sampler.batches(epoch))
    assert len(batches) == len(sampler)
    assert sorted(np.concatenate(batches)) == list(range(rows))
    if rows > 1 and batch_size > 1:
        assert all(2 <= len(batch) <= batch_size + 1 for batch in batches)


def examples_of(labels, columns=1):
    return SimpleNamespace(name='data', labels=labels, columns=[None] * columns)


@pytest.mark.parametrize(
    ('sampler', 'loss', 'kind'),
    [
        ('auto', 'ArcFaceLoss', RandomSampler),
        ('auto', 'TripletMarginLoss', ClassSampler),
        ('auto', 'MultipleNegativeRankingLoss', RandomSampler),
        ('class', 'ArcFaceLoss', ClassSampler),
        ('random', 'TripletMarginLoss', RandomSampler),
    ],
)
def test_auto_is_by_class_for_losses_that_need_positives(sampler, loss, kind):
    config = FitConfig(model='m', train_data='t', sampler=sampler, loss=loss)
    made = make_sampler(config, np.arange(64), examples_of(labels_of([8] * 8)), 16)
    assert isinstance(made.sampler, kind)


def test_some_rows_only_are_sampled():
    config = FitConfig(model='m', train_data='t')
    rows = np.arange(0, 64, 2)
    made = make_sampler(config, rows, examples_of(labels_of([8] * 8)), 16)
    assert set(np.concatenate(list(made.batches(1))).tolist()) == set(rows.tolist())


def test_a_pair_has_a_positive_in_itself():
    """Groups of one pair each are no reason to complain."""
    config = FitConfig(model='m', train_data='t', sampler='class', num_items_per_class=2)
    made = make_sampler(config, np.arange(20), examples_of(np.arange(20), columns=2), 8)
    batches = list(made.batches(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(20))


def test_the_class_sampler_needs_labels():
    config = FitConfig(model='m', train_data='t', sampler='class')
    with pytest.raises(ValueError, match="sampler 'class' needs labels, and data has none"):
        make_sampler(config, np.arange(20), examples_of(None), 8)


def test_pairs_fill_a_batch_whatever_the_items_of_a_class():
    """Each group has one row: taken two by two, half of every batch would be missing."""
    sampler = ClassSampler(np.arange(100), 16, num_items_per_class=2, least=1)
    assert (sampler.items_per_class, sampler.classes_per_batch, len(sampler)) == (1, 16, 7)


@pytest.mark.parametrize(('rows', 'batch_size'), [(10, 4), (9, 4), (1, 4), (5, 4), (3, 4), (8, 4)])
def test_the_largest_batch_is_known(rows, batch_size):
    sampler = RandomSampler(rows, batch_size)
    assert sampler.largest == max(map(len, sampler.batches(1)))
