from __future__ import annotations

import csv
import inspect
import json
import re
import stat

import numpy as np
import pytest

import finetuner
from finetuner import settings
from finetuner.callback import EarlyStopping, EvaluationCallback, WandBLogger
from finetuner.client import session, training, upload
from finetuner.client.channel import open_channel
from finetuner.client.encoding import encode_remotely
from finetuner.client.names import ADJECTIVES, NOUNS, random_name
from finetuner.data import CSVOptions
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import (
    AuthenticationError,
    DataError,
    FinetunerServerError,
    ParameterError,
    RegistryError,
    UnavailableError,
)


def make_csv(path, rows=10):
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([('text', 'label'), *((f'text {row}', f'label {row % 2}') for row in range(rows))])
    return path


def make_documents(count):
    return [Document(text=f'text {n}', tags={'finetuner_label': f'label {n % 2}'}) for n in range(count)]


@pytest.fixture
def datasets(service, run_record):
    """A service that takes data and runs; the value holds the texts of each data set, part by part."""
    stored: dict[str, dict[int, list[str]]] = {}
    contents: dict[tuple[str, int], list[dict]] = {}

    def ingest(parameters, documents):
        parts = stored.setdefault(parameters['name'], {})
        part = int(parameters['part'])
        content = [document.model_dump(exclude={'id'}) for document in documents]  # an id is no content
        if contents.setdefault((parameters['name'], part), content) != content:
            raise RegistryError(f'part {part} of {parameters["name"]} is another')
        parts[part] = documents.texts
        return {'name': parameters['name'], 'rows': sum(map(len, parts.values()))}

    service.endpoints.update({'/ingest': ingest, '/fit': run_record('CREATED'), '/runs': lambda *_: {'items': []}})
    return stored


def test_login_needs_no_arguments_where_a_token_lies(service, monkeypatch):
    token = settings.load_token()
    monkeypatch.delenv('FINETUNER_TOKEN')
    settings.save_token(token)
    finetuner.login()
    assert finetuner.get_token() == token
    assert service.parameters('/whoami') == [{}]


def test_calls_work_without_login_if_a_token_is_found(service):
    service.endpoints['/runs'] = lambda *_: {'items': []}
    assert finetuner.list_runs() == []


def test_what_the_gateway_does_not_know_yet_is_asked_for_again(service):
    service.endpoints['/rollback'] = lambda *_: {'alias': 'a@production'}
    service.unknown_for = 2
    open_channel(service.host).call('/rollback', {'token': settings.load_token(service.host)})
    assert service.parameters('/rollback') == [{}]
    service.unknown_for = 10
    with pytest.raises(UnavailableError, match='it is not known yet'):
        open_channel(service.host).call('/rollback', {'token': settings.load_token(service.host)})


def test_login_keeps_a_token_that_works_and_no_other(service, monkeypatch):
    token = settings.load_token()
    monkeypatch.delenv('FINETUNER_TOKEN')
    with pytest.raises(AuthenticationError):
        finetuner.login(token='wrong')
    assert settings.load_token() is None
    finetuner.login(host=service.host, token=token)
    assert settings.load_token() == token
    assert stat.S_IMODE(settings.credentials_path().stat().st_mode) == 0o600
    monkeypatch.delenv('FINETUNER_HOST')
    assert settings.host() == service.host
    monkeypatch.setattr(session, '_current', None)
    finetuner.login()


def test_texts_are_encoded_without_a_token_where_none_is_demanded(service, monkeypatch):
    monkeypatch.delenv('FINETUNER_TOKEN')
    service.needs_token = False
    tags = {'count': 1, 'dim': 2, 'dtype': 'float32', 'tokens': 3, 'model': 'one'}
    answer = DocumentArray([Document(blob=np.array([[1, 2]], '<f4').tobytes(), tags=tags)])
    service.endpoints['/encode_texts'] = lambda parameters, documents: answer
    assert encode_remotely(['fig jam']).tolist() == [[1, 2]]


def test_login_asks_if_it_may(service, monkeypatch):
    token = settings.load_token()
    monkeypatch.delenv('FINETUNER_TOKEN')
    with pytest.raises(
        AuthenticationError, match='there is no token for grpc://localhost.*`python -m registry token --save`'
    ):
        finetuner.login(interactive=False)
    monkeypatch.setattr(session.getpass, 'getpass', lambda prompt: f' {token}\n')
    finetuner.login(interactive=True)
    assert settings.load_token() == token


def test_without_a_token_the_way_to_one_is_told(monkeypatch):
    monkeypatch.setattr(session, '_current', None)
    with pytest.raises(AuthenticationError, match='start a service on this machine with `finetuner serve`'):
        finetuner.get_token()
    monkeypatch.setenv('FINETUNER_HOST', 'grpc://team:51000')
    with pytest.raises(AuthenticationError, match=r"call finetuner.login\(host='grpc://team:51000', token=...\)"):
        finetuner.list_runs()


def test_tokens_of_several_hosts_are_kept_apart():
    settings.save_token('local token')
    settings.save_token('team token', 'grpc://team:51000')
    assert settings.load_token() == settings.load_token('localhost:52000') == 'local token'
    assert settings.load_token('grpc://team:51000') == 'team token'
    assert settings.load_token('grpc://stranger:51000') is None


@pytest.mark.parametrize('host', ['team', 'grpc://team', 'grpc://team:51000/', 'team:51000', 'grpc://TEAM/'])
def test_a_host_has_one_token_however_it_is_written(host):
    settings.save_token('team token', host)
    assert settings.load_token('grpc://team:51000') == 'team token'
    settings.save_token('new token', 'grpc://team:51000')
    assert settings.load_token(host) == 'new token'
    assert settings.load_token('grpcs://team') is settings.load_token('team:51001') is None


def test_a_damaged_credentials_file_is_named():
    settings.config_dir().mkdir(parents=True)
    settings.credentials_path().write_text('{')
    with pytest.raises(ValueError, match='credentials.json is not a credentials file'):
        settings.load_token()


def test_a_token_is_never_shown(service):
    finetuner.login()
    assert finetuner.get_token() not in repr(session.current_session())


def test_fit_uploads_and_starts_a_run(service, datasets, tmp_path):
    train, test = make_csv(tmp_path / 'train.csv'), make_csv(tmp_path / 'test.csv', rows=4)
    run = finetuner.fit(
        'all-minilm-l6-v2',
        str(train),
        test,
        run_name='first',
        epochs=2,
        loss_options={'margin': 0.1},
        learning_rate=1e-5,
    )
    assert run.name == 'brisk-heron' and run.record['status'] == 'CREATED'
    names = 'finetuner-dastorage-default-first-train', 'finetuner-dastorage-default-first-eval'
    assert datasets == {names[0]: {0: [f'text {n}' for n in range(10)]}, names[1]: {0: [f'text {n}' for n in range(4)]}}
    (sent,) = service.parameters('/fit')
    assert (sent['train_data'], sent['eval_data']) == names
    assert sent['run_name'] == 'first' and sent['experiment_name'] == 'default'
    assert sent['model'] == 'all-minilm-l6-v2' and sent['epochs'] == 2 and sent['learning_rate'] == 1e-5
    assert sent['loss_options'] == {'margin': 0.1}
    assert 'csv_options' not in sent and 'miner' not in sent


def test_fit_takes_the_arguments_of_old_in_their_order():
    known = """
        model train_data eval_data val_split model_artifact run_name description experiment_name model_options loss
        miner miner_options optimizer optimizer_options learning_rate epochs batch_size callbacks scheduler
        scheduler_options freeze output_dim device num_workers to_onnx csv_options public num_items_per_class sampler
        loss_optimizer loss_optimizer_options
    """.split()  # noqa: SIM905
    parameters = inspect.signature(finetuner.fit).parameters
    assert list(parameters)[: len(known)] == known
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(parameters)[len(known) :])
    assert finetuner.fit is finetuner.create_run is finetuner.create_training_run


def test_all_arguments_of_fit_are_arguments_of_the_service():
    from training.config import FitConfig

    scheduling = {'priority', 'cpus', 'gpus', 'memory_limit', 'max_retries'}  # which are not the training's
    given = set(inspect.signature(finetuner.fit).parameters)
    assert given >= scheduling and given - scheduling == set(FitConfig.model_fields) - scheduling


@pytest.mark.parametrize('kind', ['list', 'array', 'generator', 'file'])
def test_kinds_of_data(datasets, tmp_path, kind):
    documents = make_documents(5)
    data = {'list': documents, 'array': DocumentArray(documents), 'generator': (document for document in documents)}
    if kind == 'file':
        with make_csv(tmp_path / 'x.csv', rows=5).open(newline='') as file:
            finetuner.fit('m', file, run_name='r')
    else:
        finetuner.fit('m', data[kind], run_name='r')
    assert datasets == {'finetuner-dastorage-default-r-train': {0: [f'text {n}' for n in range(5)]}}


def test_parts_are_bounded_in_rows_and_bytes(datasets, monkeypatch):
    monkeypatch.setattr(upload, 'PART_ROWS', 4)
    finetuner.fit('m', make_documents(10), run_name='rows')
    assert [len(part) for part in datasets['finetuner-dastorage-default-rows-train'].values()] == [4, 4, 2]
    monkeypatch.setattr(upload, 'PART_BYTES', 900)
    documents = [Document(text='x' * size) for size in (100, 500, 5000, 100, 100)]
    documents += [Document(text='x', tags={'note': 'x' * 600}), Document(text='ü' * 300), Document(text='x' * 300)]
    finetuner.fit('m', documents, run_name='bytes')
    sizes = [[len(text) for text in part] for part in datasets['finetuner-dastorage-default-bytes-train'].values()]
    assert sizes == [[100, 500], [5000], [100, 100], [1], [300], [300]]


def test_documents_that_cannot_be_sent_are_named(datasets, monkeypatch):
    monkeypatch.setattr(upload, 'PART_ROWS', 4)
    documents = make_documents(6)
    documents[5].tags['count'] = 2**40
    with pytest.raises(DataError, match=f'{documents[5].id}.*item 5 of the train data'):
        finetuner.fit('m', documents, run_name='r')


def test_data_of_different_runs_never_share_a_name(datasets):
    finetuner.fit('m', make_documents(2), experiment_name='a-b', run_name='c')
    finetuner.fit('m', make_documents(3), experiment_name='a', run_name='b-c')
    long = 'x' * 200
    finetuner.fit('m', make_documents(4), make_documents(5), experiment_name='a', run_name=long)
    finetuner.fit('m', make_documents(6), experiment_name=long, run_name=long)
    assert [len(parts[0]) for parts in datasets.values()] == [2, 3, 4, 5, 6]
    first, second, *others = datasets
    assert re.fullmatch('finetuner-dastorage-a-b-c-train-[0-9a-f]{16}', first)
    assert second == 'finetuner-dastorage-a-b-c-train'
    assert all(name.startswith('finetuner-dastorage-') and len(name) == 200 for name in others)


@pytest.mark.parametrize('is_folder', [True, False])
def test_a_bare_name_is_a_data_set_whatever_lies_in_the_working_folder(
    service, datasets, tmp_path, monkeypatch, is_folder
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'train').mkdir() if is_folder else make_csv(tmp_path / 'train')
    finetuner.fit('m', 'train')
    assert service.parameters('/fit')[-1]['train_data'] == 'train' and not datasets


def test_the_same_data_is_uploaded_once(service, datasets, tmp_path):
    path = make_csv(tmp_path / 'x.csv')
    finetuner.fit('m', path, str(path), run_name='r', callbacks=[EvaluationCallback(path, path)])
    documents = make_documents(3)
    finetuner.fit('m', documents, documents, run_name='s')
    assert list(datasets) == ['finetuner-dastorage-default-r-train', 'finetuner-dastorage-default-s-train']
    first, second = service.parameters('/fit')
    assert first['eval_data'] == first['train_data'] and second['eval_data'] == second['train_data']
    assert first['callbacks'][0]['options']['query_data'] == first['train_data']


def test_callbacks_are_described_and_their_data_uploaded(service, datasets, tmp_path):
    queries, index = make_csv(tmp_path / 'q.csv', 2), make_csv(tmp_path / 'i.csv', 6)
    callback = EvaluationCallback(str(queries), index, limit=5, gather_examples=True)
    finetuner.fit('m', make_csv(tmp_path / 't.csv'), run_name='r', callbacks=[callback])
    (sent,) = service.parameters('/fit')
    assert sent['callbacks'] == [
        {
            'name': 'EvaluationCallback',
            'options': {
                'query_data': 'finetuner-dastorage-default-r-query',
                'index_data': 'finetuner-dastorage-default-r-index',
                'batch_size': 8,
                'exclude_self': True,
                'limit': 5,
                'distance': 'cosine',
                'gather_examples': True,
            },
        }
    ]
    assert [len(parts[0]) for parts in datasets.values()] == [10, 2, 6]
    with pytest.raises(TypeError, match='is no callback'):
        finetuner.fit('m', 'train-set', callbacks=['EvaluationCallback'])


def test_callbacks_of_old_are_all_there():
    assert sorted(finetuner.list_callbacks()) == [
        'BestModelCheckpoint', 'EarlyStopping', 'EvaluationCallback', 'MLFlowLogger', 'TrainingCheckpoint',
        'WandBLogger', 'WiSEFTCallback',
    ]  # fmt: skip
    assert all(getattr(finetuner.callback, name) is item for name, item in finetuner.list_callbacks().items())


def test_several_callbacks_are_sent_each_with_data_of_its_own(service, datasets):
    callbacks = [
        EvaluationCallback(make_documents(2), 'an-index', model='clip-text', index_model='clip-vision'),
        EvaluationCallback(make_documents(3), make_documents(4), steps_per_interval=10, name='toys'),
        EarlyStopping('average_precision', patience=3),
        WandBLogger('a-token', {'project': 'p'}),
        {'name': 'WiSEFTCallback', 'options': {'alpha': 0.5}},
    ]
    finetuner.fit('m', 'train-set', run_name='r', callbacks=callbacks)
    (sent,) = service.parameters('/fit')
    prefix = 'finetuner-dastorage-default-r'
    assert {name: len(parts[0]) for name, parts in datasets.items()} == {
        f'{prefix}-query': 2, f'{prefix}-query-2': 3, f'{prefix}-index-2': 4,
    }  # fmt: skip
    first, second, early, wandb, wise = (callback['options'] for callback in sent['callbacks'])
    assert (first['query_data'], first['index_data']) == (f'{prefix}-query', 'an-index')
    assert (first['model'], first['index_model']) == ('clip-text', 'clip-vision')
    assert (second['query_data'], second['index_data']) == (f'{prefix}-query-2', f'{prefix}-index-2')
    assert second['steps_per_interval'] == 10 and second['name'] == 'toys'
    assert early == {'monitor': 'average_precision', 'mode': 'auto', 'patience': 3, 'min_delta': 0}
    assert wandb == {'token': 'a-token', 'wandb_args': {'project': 'p'}} and wise == {'alpha': 0.5}


def test_a_callback_of_ones_own_runs_here_only(service, datasets):
    class Mine:
        pass

    with pytest.raises(TypeError, match=r'One of a class of your own runs with training.fit'):
        finetuner.fit('m', 'train-set', callbacks=[Mine()])
    assert not service.calls or not service.parameters('/fit')


def test_names_of_data_sets_pass(service, datasets):
    finetuner.fit('m', 'my-train-set', 'my-test-set', run_name='r')
    (sent,) = service.parameters('/fit')
    assert (sent['train_data'], sent['eval_data']) == ('my-train-set', 'my-test-set') and not datasets


@pytest.mark.parametrize('data', ['nowhere.csv', 'folder/nowhere', './nowhere', '~/nowhere', 'data.tsv', 'DATA.CSV'])
def test_a_mistyped_path_is_an_error_and_no_name(service, datasets, data):
    with pytest.raises(DataError, match='nowhere|data|DATA'):
        finetuner.fit('m', data)
    assert not service.parameters('/fit')


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (['a text'], 'item 0 of the train data is of type str: give the path'),
        (3, 'the train data is of type int'),
        ([], 'the train data is empty'),
    ],
)
def test_other_data_is_refused(service, datasets, data, message):
    with pytest.raises(DataError, match=message):
        finetuner.fit('m', data)


def test_csv_options_reach_the_reader(datasets, tmp_path):
    finetuner.fit('m', make_csv(tmp_path / 'x.csv'), run_name='r', csv_options=CSVOptions(size=3))
    assert datasets['finetuner-dastorage-default-r-train'] == {0: ['text 0', 'text 1', 'text 2']}


def test_the_place_of_a_malformed_document_counts_all_parts(service, datasets, monkeypatch):
    def ingest(parameters, documents):
        if parameters['part'] == 2:
            raise DataError('documents[1] has no content')
        return {'rows': 8}

    service.endpoints['/ingest'] = ingest
    monkeypatch.setattr(upload, 'PART_ROWS', 4)
    with pytest.raises(DataError, match=r'documents\[1\] .* \(counted from document 8 of the train data\)'):
        finetuner.fit('m', make_documents(12), run_name='r')


@pytest.mark.parametrize('model', [None, '', 3])
def test_what_is_no_name_of_a_model_is_refused(service, model):
    with pytest.raises(ParameterError, match=f'model is {model!r}, and not the name of a model: with model_artifact'):
        finetuner.fit(model, 'fruits', model_artifact='a' * 24)
    assert not service.parameters('/fit')


def test_other_data_under_the_name_of_an_old_run_is_refused(datasets):
    finetuner.fit('m', make_documents(5), run_name='r')
    finetuner.fit('m', make_documents(5), run_name='r')
    with pytest.raises(RegistryError, match='give it another run_name'):
        finetuner.fit('m', make_documents(6)[1:], run_name='r')


def test_fewer_parts_than_before_are_noticed(datasets, monkeypatch):
    monkeypatch.setattr(upload, 'PART_ROWS', 4)
    finetuner.fit('m', make_documents(8), run_name='r')
    with pytest.raises(RegistryError, match='holds 8 documents where 4 were sent now'):
        finetuner.fit('m', make_documents(4), run_name='r')


def test_runs_get_random_names_that_are_free(service, datasets, run_record, monkeypatch):
    names = iter(['taken-name', 'free-name'])
    monkeypatch.setattr(training, 'random_name', lambda: next(names))
    service.endpoints['/runs'] = lambda *_: {'items': [{'name': 'taken-name'}]}
    finetuner.fit('m', 'train-set')
    assert service.parameters('/fit')[0]['run_name'] == 'free-name'
    adjective, noun = random_name().split('-')
    assert adjective in ADJECTIVES and noun in NOUNS
    assert len(set(ADJECTIVES)) * len(set(NOUNS)) > 10_000


def test_errors_of_the_service_are_raised_as_themselves(service, datasets):
    def refuse(parameters, documents):
        raise ParameterError("parameter 'loss': unknown")

    service.endpoints['/fit'] = refuse
    with pytest.raises(ParameterError, match="parameter 'loss': unknown"):
        finetuner.fit('m', 'train-set')
    service.endpoints['/fit'] = lambda *_: []
    with pytest.raises(FinetunerServerError, match='answered /fit with 0 documents'):
        finetuner.fit('m', 'train-set')


def test_runs_are_listed_page_by_page(service, run_record):
    service.endpoints['/runs'] = lambda *arguments: {
        'items': [{**run_record('FINISHED')(*arguments), 'name': name} for name in ('b', 'a')]
    }
    assert [run.name for run in finetuner.list_runs('e', page=2, size=10)] == ['b', 'a']
    assert service.parameters('/runs') == [{'experiment_name': 'e', 'page': 2, 'size': 10}]


def test_cos_sim():
    assert finetuner.cos_sim([1, 0], [2, 0]) == pytest.approx(1)
    assert finetuner.cos_sim(np.array([[1.0, 0.0]]), [0, 3]) == pytest.approx(0)
    with pytest.raises(ValueError, match='is zero'):
        finetuner.cos_sim([0, 0], [1, 0])
    with pytest.raises(ValueError, match='1 and 2 dimensions'):
        finetuner.cos_sim([1], [1, 0])


def test_credentials_of_older_files_are_read():
    settings.config_dir().mkdir(parents=True)
    settings.credentials_path().write_text(json.dumps({'token': 'abc'}))
    assert settings.load_token() == 'abc' and settings.host() == settings.DEFAULT_HOST


def test_csv_options_may_be_a_dict(datasets, tmp_path):
    finetuner.fit('m', make_csv(tmp_path / 'x.csv'), run_name='r', csv_options={'size': 3})
    [parts] = datasets.values()
    assert sum(map(len, parts.values())) == 3


@pytest.mark.parametrize(
    ('given', 'error', 'message'),
    [
        ({'sise': 3}, ParameterError, "'csv_options': 'sise' is unknown: choose of size, sampling_rate, dialect"),
        ({'sampling_rate': 'all'}, ParameterError, "'csv_options': "),
        ({'size': 0}, DataError, 'CSVOptions.size is 0'),
        ('size=3', ParameterError, "'csv_options' is of type str: give CSVOptions"),
    ],
)
def test_wrong_csv_options_are_named(service, tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        finetuner.fit('m', make_csv(tmp_path / 'x.csv'), run_name='r', csv_options=given)


def test_every_argument_of_fit_is_described():
    described = re.findall(r':param (\w+):', finetuner.fit.__doc__)
    assert sorted(described) == sorted(inspect.signature(finetuner.fit).parameters)
