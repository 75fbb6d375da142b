"""Values of a search space, as texts and back."""

import pytest

from training.iterations.parameters import middle, name_of, read, write
from training.methods.method import Search

SPACE = Search.model_validate(
    {
        'space': {
            'learning_rate': {'low': 1e-6, 'high': 1e-4, 'log': True},
            'loss_options.margin': [0.025, 0.05, 0.1],
            'freeze': [0, 2, True],
            'miner': [None, 'Some'],
        }
    }
).space
VALUES = {'learning_rate': 3.0000000000000004e-05, 'loss_options.margin': 0.05, 'freeze': 2, 'miner': None}


def test_values_come_back_with_their_types():
    texts = write(VALUES)
    assert all(isinstance(text, str) for text in texts.values())
    found = read(SPACE, {**texts, 'batch_id': 'b', 'plugin_name': 'a method'})
    assert found == VALUES and [type(value) for value in found.values()] == [type(value) for value in VALUES.values()]
    assert name_of(found) == name_of(VALUES)
    assert read(SPACE, write({**VALUES, 'freeze': True}))['freeze'] is True


@pytest.mark.parametrize(
    'change',
    [
        {'learning_rate': 1e-3},
        {'learning_rate': True},
        {'loss_options.margin': 0.07},
        {'freeze': 1},
        {'freeze': 2.0},
        {'miner': 'Other'},
    ],
)
def test_what_the_space_does_not_allow_any_more_is_passed_over(change):
    assert read(SPACE, write({**VALUES, **change})) is None


def test_what_is_missing_or_broken_is_passed_over():
    texts = write(VALUES)
    assert read(SPACE, {name: text for name, text in texts.items() if name != 'freeze'}) is None
    assert read(SPACE, {**texts, 'freeze': '{'}) is None


def test_the_name_is_that_of_the_values_in_any_order():
    assert name_of(dict(reversed(VALUES.items()))) == name_of(VALUES) != name_of({**VALUES, 'freeze': 0})
    assert len(name_of({})) == 64


def test_the_middle_is_allowed():
    found = middle(SPACE)
    assert found['learning_rate'] == pytest.approx(1e-5) and found['loss_options.margin'] == 0.05
    assert read(SPACE, write(found)) == found
