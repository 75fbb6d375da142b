"""Callbacks by name: what `fit` takes, and what it refuses before any work."""

from __future__ import annotations

import dataclasses
import traceback

import pytest

import finetuner.callback
from finetuner.callback import (
    BestModelCheckpoint,
    EarlyStopping,
    EvaluationCallback,
    MLFlowLogger,
    TrainingCheckpoint,
    WandBLogger,
    WiSEFTCallback,
)
from finetuner.excepts import ParameterError
from training.callbacks import Callback, options
from training.config import FitConfig


def make_config(*callbacks, **arguments):
    return FitConfig.from_arguments(model='m', train_data='t', callbacks=list(callbacks), **arguments)


def test_the_client_and_the_service_know_the_same_options_and_defaults():
    for name, model in options._OPTIONS.items():
        fields = dataclasses.fields(getattr(finetuner.callback, name))
        assert [field.name for field in fields] == list(model.model_fields), name
        for field in fields:
            known = model.model_fields[field.name]
            required = field.default is field.default_factory is dataclasses.MISSING
            assert required == known.is_required(), (name, field.name)
            if field.default is not dataclasses.MISSING:
                assert field.default == known.default, (name, field.name)


def test_objects_and_their_description_mean_the_same():
    objects = [EvaluationCallback('q', limit=3), EarlyStopping('train_loss'), WiSEFTCallback(0.5)]
    described = [
        {'name': 'EvaluationCallback', 'options': {'query_data': 'q', 'limit': 3.0, 'index_data': None}},
        {'name': 'EarlyStopping', 'options': {'monitor': 'train_loss', 'patience': 2.0}},
        {'name': 'WiSEFTCallback', 'options': {'alpha': 0.5}},
    ]
    first, second = make_config(*objects), make_config(*described)
    assert first == second
    assert FitConfig.from_arguments(**first.model_dump(mode='json')) == first


def test_an_object_of_ones_own_class_passes():
    class Mine(Callback):
        pass

    mine = Mine()
    config = make_config(mine, BestModelCheckpoint('my_figure'))
    assert config.callbacks[0] is mine
    assert config.model_dump(mode='json')['callbacks'][0] == {'name': 'Mine', 'options': {}}


@pytest.mark.parametrize(
    ('callback', 'message'),
    [
        ({'name': 'EvaluationCalback', 'options': {}}, "unknown callback 'EvaluationCalback': did you mean Evaluation"),
        (
            {'name': 'EarlyStopping', 'options': {'patienc': 1}},
            "unknown option of EarlyStopping 'patienc': did you",
        ),
        ({'name': 'EarlyStopping', 'patience': 1}, "EarlyStopping: 'patience' is neither its name nor its options"),
        ({'name': 'EvaluationCallback', 'options': {}}, 'EvaluationCallback needs query_data'),
        ({'name': 'WiSEFTCallback'}, 'WiSEFTCallback needs alpha'),
        (
            EvaluationCallback('q', limit=0),
            'EvaluationCallback: limit: input should be greater than .* got 0',
        ),
        (EvaluationCallback('q', distance='l1'), "EvaluationCallback: distance: input should be 'cosine', .*got 'l1'"),
        (EarlyStopping(mode='up'), "EarlyStopping: mode: input should be 'auto', 'min' or 'max', got 'up'"),
        (EarlyStopping('train_loss', patience=0), 'EarlyStopping: patience: .*got 0'),
        (TrainingCheckpoint(0), 'TrainingCheckpoint: last_k_epochs: .*got 0'),
        (WiSEFTCallback(1.5), 'WiSEFTCallback: alpha: .*got 1.5'),
        (WandBLogger(wandb_args={'projekt': 'x'}), 'wandb_args: unknown argument of wandb.init .*did you mean project'),
        (MLFlowLogger('e', 'https://me:secret@host'), 'MLFlowLogger: tracking_uri holds a password'),
        (EarlyStopping, 'callbacks: the class EarlyStopping is no callback'),
        ('EarlyStopping', 'callbacks: a str is no callback'),
    ],
)
def test_what_is_wrong_is_refused_by_name(callback, message):
    with pytest.raises(ParameterError, match=message):
        make_config(callback)


@pytest.mark.parametrize(
    ('callback', 'arguments', 'message'),
    [
        (
            BestModelCheckpoint(),
            {},
            "'val_loss' is not there: this run has train_loss .val_loss needs eval_data",
        ),
        (EarlyStopping(), {}, "EarlyStopping: monitor='val_loss' is not there"),
        (EarlyStopping('recall_at_k'), {'val_split': 0.1}, 'train_loss, val_loss .metrics need an EvaluationCallback'),
    ],
)
def test_a_figure_that_will_not_be_there_is_refused_before_any_work(callback, arguments, message):
    with pytest.raises(ParameterError, match=message):
        make_config(callback, **arguments)


def test_figures_that_will_be_there_pass():
    make_config(BestModelCheckpoint(), val_split=0.1)
    make_config(EarlyStopping(), eval_data='e')
    make_config(EvaluationCallback('q'), EarlyStopping('average_precision'))
    make_config(EvaluationCallback('q'), EarlyStopping('clip-text-to-clip-vision_recall_at_k'))


def test_what_changes_the_weights_in_the_end_is_given_once():
    with pytest.raises(ParameterError, match='WiSEFTCallback is given 2 times'):
        make_config(WiSEFTCallback(0.5), WiSEFTCallback(0.2))


def test_a_token_is_neither_shown_nor_stored():
    config = make_config(WandBLogger('s3cr3t'))
    assert config.callbacks[0].options.token.get_secret_value() == 's3cr3t'
    assert 's3cr3t' not in repr(config) + str(config.model_dump(mode='json')) + repr(WandBLogger('s3cr3t'))
    for wrong in ({'token': 's3cr3t', 'limit': 1}, {'tokn': 's3cr3t'}, {'token': ['s3cr3t']}):
        with pytest.raises(ParameterError) as refused:
            make_config({'name': 'WandBLogger', 'options': wrong})
        assert 's3cr3t' not in str(refused.value)


def test_a_token_in_callbacks_that_are_no_list_is_not_shown(capsys):
    with pytest.raises(ParameterError, match='callbacks: ') as refused:
        FitConfig.from_arguments(
            model='m', train_data='t', callbacks={'name': 'WandBLogger', 'options': {'token': 's3cr3t'}}
        )
    assert 's3cr3t' not in ''.join(traceback.format_exception(refused.value))
