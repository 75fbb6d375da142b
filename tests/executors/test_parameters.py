import pytest

from executors.parameters import (
    DeleteExperimentsParameters,
    DeleteSessionsParameters,
    EncodeParameters,
    FitParameters,
    IngestParameters,
    LogParameters,
    Parameters,
)
from finetuner.excepts import ParameterError

SECRET = 'a-secret-token'


def refused(model: type[Parameters], **values) -> str:
    with pytest.raises(ParameterError) as caught:
        model(**values)
    error = caught.value
    assert error.__cause__ is None, 'a chained ValidationError would show the input'
    return str(error)


def test_whole_floats_are_integers():
    assert LogParameters(run_name='r', offset=3.0).offset == 3


def test_true_and_false_are_no_numbers():
    """False would be 0 days: every session would be deleted."""
    with pytest.raises(ParameterError, match="'older_than_days': it must be a number, got False"):
        DeleteSessionsParameters(older_than_days=False)
    assert FitParameters(check_only=True).check_only
    with pytest.raises(ParameterError, match="'check_only': .*boolean, got 1"):
        FitParameters(check_only=1)


def test_an_error_names_the_field_the_reason_and_the_value():
    message = refused(LogParameters, run_name='r', offset='many')
    assert "'offset'" in message
    assert 'valid integer' in message
    assert "'many'" in message


def test_every_wrong_field_is_named_at_once():
    message = refused(IngestParameters, part=-1, uri=3)
    assert "'name' is missing" in message
    assert "'part': input should be greater than or equal to 0, got -1" in message
    assert "'uri': input should be a valid string, got 3" in message


@pytest.mark.parametrize(
    'values',
    [
        {'token': SECRET, 'name': 3},
        {'token': SECRET},
        {'token': [SECRET], 'name': 'x'},
        {'token': {'x': SECRET}, 'name': 'x'},
        {'tokn': SECRET, 'name': 'x'},
        {'token': SECRET, 'name': 'x', 'csv_options': SECRET, 'part': [SECRET]},
        {'token': SECRET, 'name': {'nested': SECRET}},
    ],
)
def test_no_error_shows_a_token(values):
    message = refused(IngestParameters, **values)
    if values.get('csv_options') is None:
        assert SECRET not in message
    assert f'[{SECRET!r}]' not in message


def test_a_token_does_not_show_itself():
    parameters = IngestParameters(token=SECRET, name='x')
    assert SECRET not in repr(parameters) + str(parameters)
    assert parameters.secret == SECRET


def test_unknown_parameters_are_refused():
    assert "'nmae' is unknown" in refused(IngestParameters, name='x', nmae='y')


def test_experiments_are_deleted_by_a_thousand_names_at_most():
    assert DeleteExperimentsParameters().names is None
    assert len(DeleteExperimentsParameters(names=['a'] * 1000).names) == 1000
    assert "'names': list should have at most 1000 items" in refused(DeleteExperimentsParameters, names=['a'] * 1001)


def test_fit_keeps_its_arguments_apart_from_the_token():
    assert FitParameters(token=SECRET, model='m', epochs=3.0).arguments == {'model': 'm', 'epochs': 3.0}


def test_encode_leaves_the_parameters_of_other_executors_alone():
    assert EncodeParameters(token=SECRET, limit=10, indexer={'k': 3}).secret == SECRET


def test_the_field_that_jinas_client_adds_is_no_parameter():
    assert LogParameters(run_name='r', __results__={}).run_name == 'r'
