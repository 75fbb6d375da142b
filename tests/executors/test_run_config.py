"""The nested configuration of Jina's Finetuner, to the arguments of /fit and back."""

import pytest
from pydantic import ValidationError

from executors.api.run_config import ADDED, SECTIONS, RunConfig, from_arguments, to_arguments
from training.config import FitConfig

# as the client of Jina's Finetuner sends it
OF_JINA = {
    'model': {
        'name': 'all-minilm-l6-v2',
        'artifact': None,
        'freeze': False,
        'output_dim': None,
        'options': {},
        'to_onnx': False,
    },
    'data': {
        'train_data': 'finetuner-dastorage-e-r-train',
        'eval_data': None,
        'evaluate': False,
        'num_workers': 4,
        'num_items_per_class': 4,
        'val_split': 0.0,
        'sampler': 'auto',
    },
    'hyper_parameters': {
        'loss': 'TripletMarginLoss',
        'loss_options': None,
        'optimizer': 'Adam',
        'optimizer_options': {},
        'miner': None,
        'miner_options': None,
        'batch_size': 8,
        'learning_rate': 1e-5,
        'epochs': 10,
        'scheduler': None,
        'scheduler_options': {'num_warmup_steps': 0, 'num_training_steps': 'auto', 'scheduler_step': 'batch'},
        'loss_optimizer': None,
        'loss_optimizer_options': {},
    },
    'callbacks': [
        {
            'name': 'EvaluationCallback',
            'options': {
                'query_data': 'q',
                'index_data': None,
                'batch_size': 8,
                'exclude_self': True,
                'limit': 20,
                'distance': 'cosine',
                'model': None,
                'index_model': None,
                'gather_examples': False,
            },
        },
        {'name': 'EarlyStopping', 'options': {'monitor': 'train_loss', 'baseline': None}},
    ],
    'public': False,
    'experiment_name': 'e',
    'run_name': 'r',
}


def test_what_jinas_client_sends_is_a_fit_configuration():
    arguments = to_arguments(RunConfig.model_validate(OF_JINA))
    config = FitConfig.from_arguments(**arguments, device='cpu')
    assert (config.model, config.epochs, config.batch_size, config.num_workers) == ('all-minilm-l6-v2', 10, 8, 4)
    assert config.learning_rate == 1e-5 and config.scheduler is None
    assert [callback.name for callback in config.callbacks] == ['EvaluationCallback', 'EarlyStopping']


def test_the_configuration_of_a_run_is_what_was_sent():
    stored = FitConfig.from_arguments(**to_arguments(RunConfig.model_validate(OF_JINA))).model_dump(mode='json')
    nested = from_arguments(stored)
    for section in ('model', 'data'):
        assert nested[section] == OF_JINA[section]
    sent = dict(OF_JINA['hyper_parameters'])
    del sent['scheduler_options'], nested['hyper_parameters']['scheduler_options']  # of no scheduler
    assert nested['hyper_parameters'] == sent
    assert RunConfig.model_validate(nested).hyper_parameters.epochs == 10, 'it can be sent again'


def test_every_argument_of_fit_has_a_place_and_the_same_default():
    fields = FitConfig.model_fields
    elsewhere = {'run_name', 'experiment_name', 'description', 'device', 'csv_options', 'callbacks', 'public'}
    flat = to_arguments(RunConfig(model={'name': 'x'}, data={'train_data': 'y'}))
    places = {
        **{name: name for name in fields},
        'model': 'name',
        'model_artifact': 'artifact',
        'model_options': 'options',
    }
    known = {name for section in SECTIONS.values() for name in section.model_fields}
    assert {places[name] for name in fields if name not in elsewhere} == known - {'evaluate'}
    for section, names in ADDED.items():
        for name in names:
            assert section.model_fields[name].default == fields[name].default, name
    assert 'seed' not in flat and 'lora' not in flat


def test_what_jina_did_not_have_is_taken_and_told():
    config = RunConfig(
        model={'name': 'x', 'lora': True, 'max_length': 16}, data={'train_data': 'y'}, hyper_parameters={'seed': 7}
    )
    arguments = to_arguments(config)
    assert (arguments['lora'], arguments['max_length'], arguments['seed']) == (True, 16, 7)
    nested = from_arguments(arguments)
    assert nested['model']['lora'] is True and nested['hyper_parameters']['seed'] == 7
    assert 'compile' not in nested['model']


def test_the_configuration_of_a_task_has_what_is_known_of_it_alone():
    stored = {'model': 'all-minilm-l6-v2', 'loss': 'CosineProbMarginRankingLoss', 'device': 'cuda', 'tuning_task': 'a'}
    assert from_arguments(stored) == {
        'model': {'name': 'all-minilm-l6-v2'},
        'data': {},
        'hyper_parameters': {'loss': 'CosineProbMarginRankingLoss'},
        'tuning_task': 'a',
    }


@pytest.mark.parametrize(
    ('change', 'place'),
    [
        ({'modle': {}}, ('modle',)),
        ({'model': {'name': 'x', 'outputdim': 3}}, ('model', 'outputdim')),
        ({'hyper_parameters': {'batchsize': 3}}, ('hyper_parameters', 'batchsize')),
        (
            {'hyper_parameters': {'scheduler_options': {'warmup': 3}}},
            ('hyper_parameters', 'scheduler_options', 'warmup'),
        ),
        ({'callbacks': [{'name': 'EarlyStopping', 'option': {}}]}, ('callbacks', 0, 'option')),
    ],
)
def test_an_unknown_key_is_refused_with_its_path(change, place):
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate({**OF_JINA, **change})
    assert place in {error['loc'] for error in caught.value.errors()}
