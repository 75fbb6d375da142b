"""Names, arguments and defaults that code written for Jina AI's Finetuner (0.8.1) relies on."""

from __future__ import annotations

import inspect

import pytest

import finetuner
from finetuner import console, constants, excepts, model
from finetuner.experiment import Experiment
from finetuner.models import BACKBONES
from finetuner.run import Run

FUNCTIONS = {
    'login': {'force': False, 'interactive': None},
    'list_callbacks': {},
    'list_models': {},
    'list_model_options': {},
    'describe_models': {'task': None},
    'get_run': {'run_name': ..., 'experiment_name': None},
    'list_runs': {'experiment_name': None, 'page': 1, 'size': 50},
    'delete_run': {'run_name': ..., 'experiment_name': None},
    'delete_runs': {'experiment_name': None},
    'create_experiment': {'name': 'default'},
    'get_experiment': {'name': ...},
    'list_experiments': {'page': 1, 'size': 50},
    'delete_experiment': {'name': ...},
    'delete_experiments': {},
    'get_token': {},
    'build_model': {
        'name': ..., 'model_options': None, 'batch_size': 32, 'select_model': None, 'device': None, 'is_onnx': False,
    },
    'get_model': {
        'artifact': ..., 'token': None, 'batch_size': 32, 'select_model': None, 'device': None,
        'logging_level': 'WARNING',
    },
    'encode': {'model': ..., 'data': ..., 'batch_size': 32},
    'cos_sim': {'a': ..., 'b': ...},
}  # fmt: skip
FIT = {
    'model': ..., 'train_data': ..., 'eval_data': None, 'val_split': 0.0, 'model_artifact': None, 'run_name': None,
    'description': None, 'experiment_name': None, 'model_options': None, 'loss': 'TripletMarginLoss', 'miner': None,
    'miner_options': None, 'optimizer': 'Adam', 'optimizer_options': None, 'learning_rate': None, 'epochs': 5,
    'batch_size': None, 'callbacks': None, 'scheduler': None, 'scheduler_options': None, 'freeze': False,
    'output_dim': None, 'device': 'cuda', 'num_workers': 4, 'to_onnx': False, 'csv_options': None, 'public': False,
    'num_items_per_class': 4, 'sampler': 'auto', 'loss_optimizer': None, 'loss_optimizer_options': None,
}  # fmt: skip
METHODS = {
    Experiment: {
        'get_run': {'name': ...},
        'list_runs': {'page': 1, 'size': 50},  # 50 for the page was a slip
        'delete_run': {'name': ...},
        'delete_runs': {},
        'create_training_run': {
            'model': ..., 'train_data': ..., 'run_name': None, 'eval_data': None, 'csv_options': None,
        },
    },
    Run: {
        'status': {},
        'logs': {},
        'stream_logs': {'interval': 5},
        'metrics': {},
        'display_metrics': {},
        'example_results': {},
        'display_examples': {'k': 5},
        'save_artifact': {'directory': 'artifacts/'},
    },
    finetuner.Finetuner: {
        'create_training_run': FIT,
        **{
            name: FUNCTIONS[name]
            for name in (
                'login', 'create_experiment', 'get_experiment', 'list_experiments', 'delete_experiment',
                'delete_experiments', 'get_run', 'list_runs', 'delete_run', 'delete_runs', 'get_token',
            )
        },
    },
}  # fmt: skip
PROPERTIES = {
    Experiment: ('name', 'status'),
    Run: ('name', 'config', 'task', 'artifact_id', 'train_data'),
}
MODULES = {
    console: {
        'print_model_table': {'model': ..., 'task': None},
        'print_examples': {'stage': ..., 'results': ..., 'k': 5},
        'print_metrics': {'stage': ..., 'metrics': ...},
    },
    model: {'get_header': {}, 'list_model_classes': {}},
}
CONSTANTS = {
    'CREATED': 'CREATED',
    'STARTED': 'STARTED',
    'FINISHED': 'FINISHED',
    'FAILED': 'FAILED',
    'DEFAULT_TAG_KEY': 'finetuner_label',
    'DEFAULT_TAG_SCORE_KEY': 'finetuner_score',
    'DA_PREFIX': 'finetuner-dastorage',
    'ARTIFACTS_DIR': 'artifacts/',
    'API_VERSION': 'api/v1',
    'TRAINING_TASK': 'training',
    'SYNTHESIS_TASK': 'generation',
    'HF_URL_PREFIX': 'https://huggingface.co/jinaai/',
    'HF_ORG_PREFIX': 'jinaai/',
    'MAX_NUM_DOCS': 'max_num_docs',
    'MODELS': 'models',
    'EVALUATE': 'evaluate',
}


def members(owner, known):
    return [pytest.param(owner, name, expected, id=f'{owner.__name__}.{name}') for name, expected in known.items()]


@pytest.mark.parametrize(
    ('owner', 'name', 'expected'),
    [
        *members(finetuner, {**FUNCTIONS, 'fit': FIT, 'create_training_run': FIT, 'create_run': FIT}),
        *(case for owner, known in {**METHODS, **MODULES}.items() for case in members(owner, known)),
    ],
)
def test_arguments_stand_where_they_stood(owner, name, expected):
    """What came later stands after them, and has a default."""
    given = list(inspect.signature(getattr(owner, name)).parameters.values())
    given = [parameter for parameter in given if parameter.name != 'self']
    known, added = given[: len(expected)], given[len(expected) :]
    assert {
        parameter.name: ... if parameter.default is parameter.empty else parameter.default for parameter in known
    } == expected
    assert all(
        parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD for parameter in added
    )


@pytest.mark.parametrize(('owner', 'name'), [(owner, name) for owner, names in PROPERTIES.items() for name in names])
def test_properties(owner, name):
    assert isinstance(inspect.getattr_static(owner, name), property)


def test_constants():
    assert {name: getattr(constants, name) for name in CONSTANTS} == CONSTANTS


def test_our_own_code_uses_the_same_tags():
    from finetuner.documents import LABEL, SCORE

    assert (constants.DEFAULT_TAG_KEY, constants.DEFAULT_TAG_SCORE_KEY) == (LABEL, SCORE)


def test_the_error_of_a_service_shows_its_three_parts():
    error = excepts.FinetunerServerError()
    assert (error.message, error.details, error.code) == ('An unknown error occurred', '', -1)
    assert str(excepts.FinetunerServerError('no', 'more', 404)) == 'no (404): more'
    for name in ('RunInProgressError', 'RunPreparingError', 'RunFailedError', 'SelectModelRequired'):
        assert issubclass(getattr(excepts, name), Exception)


def test_what_was_exported():
    for name in ('Document', 'DocumentArray', 'CSVOptions', 'Run', 'Experiment', 'Finetuner', 'login_required'):
        assert name in finetuner.__all__ and hasattr(finetuner, name)
    assert finetuner.fit is finetuner.create_training_run is finetuner.create_run


def test_login_required(service, monkeypatch):
    @finetuner.login_required
    def add(one, other):
        return one + other

    assert add(1, other=2) == 3 and add.__name__ == 'add'
    monkeypatch.delenv('FINETUNER_TOKEN')
    with pytest.raises(excepts.AuthenticationError, match='there is no token'):
        add(1, 2)


def test_tables_of_one_stage(capsys):
    console.print_metrics('before', {'hit_at_k': 0.5})
    console.print_examples('after', {'[b]query': ['one', 'two', 'three']}, k=2)
    console.print_model_table(model, task='image-to-image')
    shown = ' '.join(capsys.readouterr().out.split())
    assert 'Retrieval metrics before fine-tuning:' in shown and 'Retrieval Metric' in shown and '0.50000' in shown
    assert '[b]query' in shown and 'Match 2' in shown and 'two' in shown and 'three' not in shown
    assert 'Finetuner backbones: image-to-image' in shown and 'resnet-base' in shown and 'bert-base-en' not in shown
    console.print_model_table(model)
    shown = capsys.readouterr().out
    assert all((backbone.name in shown) == backbone.listed for backbone in BACKBONES)


def test_a_training_run_produces_no_data(service, run_record):
    service.endpoints['/status'] = run_record('FINISHED')
    run = finetuner.get_run('brisk-heron')
    assert run.task == 'training'
    with pytest.raises(ValueError, match=r'^training run does not produce data.$'):
        run.train_data  # noqa: B018


def test_an_experiment_starts_runs_with_the_arguments_of_fit(service, run_record):
    record = {'name': 'support', 'status': 'ACTIVE', 'description': '', 'created_at': '2026-01-01', 'runs': 0}
    service.endpoints.update({'/experiment': lambda *_: record, '/fit': run_record('CREATED')})
    experiment = finetuner.get_experiment('support')
    experiment.create_training_run('m', 'train-set', 'first', 'test-set', {'size': 3}, epochs=2)
    (sent,) = service.parameters('/fit')
    assert (sent['model'], sent['train_data'], sent['eval_data']) == ('m', 'train-set', 'test-set')
    assert (sent['experiment_name'], sent['run_name'], sent['epochs']) == ('support', 'first', 2)
