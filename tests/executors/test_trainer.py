"""The trainer without a Flow around it."""

import asyncio
import json

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from sqlalchemy import select

from executors import trainer
from executors.parameters import FitParameters, NewTuningTaskParameters, RunParameters
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import NotFoundError, ParameterError, RegistryError, RunFailedError, RunInProgressError
from registry.models import RunRow

RUN = {'run_name': 'r', 'experiment_name': 'default'}


@pytest.fixture
def executor(tmp_path, monkeypatch):
    monkeypatch.setenv('FINETUNER_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('FINETUNER_CONFIG_DIR', str(tmp_path / 'config'))
    executor = trainer.TrainerExecutor()
    yield executor
    executor.close()


def test_a_run_without_a_name_gets_another_where_the_random_one_is_taken(executor, monkeypatch):
    monkeypatch.setattr(trainer, 'random_name', lambda: 'brisk-heron')
    registry = executor.registry
    account = registry.get_account()
    documents = [Document(text=f'text {i}', tags={'finetuner_label': i % 2}) for i in range(8)]
    registry.append_documents(account.id, 'data', documents)
    token = registry.create_token(account.id, 'test')

    def fit(**arguments):
        parameters = FitParameters(token=token, model='all-minilm-l6-v2', train_data='data', **arguments)
        return executor.fit(DocumentArray(), parameters=parameters)[0].tags['name']

    names = [fit(epochs=1), fit(epochs=1), fit(epochs=2)]
    assert names[0] == 'brisk-heron'
    assert all(name.startswith('brisk-heron-') for name in names[1:])
    assert len(set(names)) == 3


@pytest.fixture
def submit(executor, monkeypatch):
    """Submit a run that waits, as nobody works on it; the value is a function, and the token."""
    executor.supervisor.close()
    registry = executor.registry
    account = registry.get_account()
    documents = [Document(text=f'text {i}', tags={'finetuner_label': i % 2}) for i in range(8)]
    registry.append_documents(account.id, 'data', documents)
    token = registry.create_token(account.id, 'test')

    def make(**arguments):
        arguments = {'model': 'all-minilm-l6-v2', 'train_data': 'data', 'run_name': 'r', **arguments}
        parameters = FitParameters(token=token, **arguments)
        return executor.fit(DocumentArray(), parameters=parameters)[0].tags

    return make, token


def test_a_run_is_cancelled_and_resumed(executor, submit, tmp_path):
    make, token = submit
    make()
    parameters = RunParameters(token=token, run_name='r')

    def tags(endpoint):
        return endpoint(DocumentArray(), parameters=parameters)[0].tags

    with pytest.raises(RunInProgressError, match="^the run 'r' has to be FINISHED first, it is CREATED$"):
        executor.metrics(DocumentArray(), parameters=parameters)
    assert tags(executor.cancel)['status'] == 'CANCELLED'
    assert tags(executor.cancel)['details'] == "Cancelled by the account 'local'"
    with pytest.raises(RunFailedError, match="the run 'r' was cancelled: Cancelled by the account 'local'"):
        executor.metrics(DocumentArray(), parameters=parameters)
    assert make()['status'] == 'CANCELLED'  # the same run
    assert tags(executor.resume)['status'] == tags(executor.resume)['status'] == 'CREATED'
    run = executor.registry.list_runs(executor.registry.get_account().id).items[0]
    executor.registry.start_run(run.id, 'host:1')
    (tmp_path / 'a.zip').write_bytes(b'zip')
    executor.registry.finish_run(run.id, tmp_path / 'a.zip', {}, {})
    assert tags(executor.cancel)['status'] == 'FINISHED'
    with pytest.raises(RegistryError, match="the run 'r' has finished: there is nothing to go on with"):
        tags(executor.resume)


def test_the_end_of_a_log_comes_although_the_run_was_silent_for_long(executor, submit, monkeypatch):
    make, token = submit
    run_id = make()['id']
    registry, lease = executor.registry, 'a' * 24
    monkeypatch.setattr(trainer, 'POLL', 0.02)
    monkeypatch.setattr(trainer, 'LAST_WORDS', 0.4)
    registry.start_run(run_id, 'host:1', lease)

    async def read():
        return ''.join([piece.text async for piece in executor.logstream(Document(tags={**RUN, 'token': token}))])

    async def listen():
        text = asyncio.create_task(read())
        await asyncio.sleep(1)
        registry.fail_run(run_id, 'no reason', lease)
        await asyncio.sleep(0.1)
        registry.append_log(run_id, lease, 0, b'the last words')
        return await text

    assert asyncio.run(listen()) == 'the last words'


def test_the_log_of_a_run_that_waits_begins_with_an_empty_piece(executor, submit):
    make, token = submit
    make()

    async def first(**tags):
        return await asyncio.wait_for(anext(executor.logstream(Document(tags={**RUN, 'token': token, **tags}))), 5)

    piece = asyncio.run(first(offset=0))
    assert (piece.text, piece.tags['offset'], piece.tags['status']) == ('', 0, 'CREATED')
    with pytest.raises(NotFoundError):
        asyncio.run(first(run_name='another'))


def test_a_run_of_another_is_as_one_that_is_not_there(executor, submit):
    make, _ = submit
    run_id = make()['id']
    other = executor.registry.create_token(executor.registry.create_account('other').id, 'test')
    told = []
    for asked in (run_id, 'f' * 24):
        with pytest.raises(NotFoundError) as raised:
            executor.status(DocumentArray(), parameters=RunParameters(token=other, run_id=asked))
        told.append(str(raised.value).replace(asked, 'ID'))
    assert told[0] == told[1]


def test_a_token_of_a_tracker_is_kept_for_the_worker_alone(executor, submit):
    make, _ = submit
    tags = make(callbacks=[{'name': 'WandBLogger', 'options': {'token': 's3cr3t', 'wandb_args': {'project': 'p'}}}])
    assert 's3cr3t' not in repr(tags)
    run = executor.registry.list_runs(executor.registry.get_account().id).items[0]
    assert 's3cr3t' not in repr(run)
    assert 's3cr3t' in (executor.registry.run_directory(run.id) / 'secrets.json').read_text()
    home = executor.registry.home
    assert [file.name for file in home.rglob('*') if file.is_file() and b's3cr3t' in file.read_bytes()] == [
        'secrets.json'
    ]


def test_the_token_is_there_before_anyone_sees_the_run(executor, submit, monkeypatch):
    make, _ = submit
    seen = []

    def keep(config, directory):
        seen.append([run.name for run in executor.registry.unfinished_runs()])

    monkeypatch.setattr(trainer, 'keep_secrets', keep)
    make()
    assert seen == [[]]
    make()
    assert seen == [[], ['r']]


def test_no_run_is_made_whose_token_cannot_be_kept(executor, submit, monkeypatch):
    def keep(config, directory):
        raise OSError('no space left')

    make, _ = submit
    monkeypatch.setattr(trainer, 'keep_secrets', keep)
    with pytest.raises(OSError, match='no space left'):
        make()
    assert executor.registry.unfinished_runs() == []


@pytest.mark.parametrize(
    'uri',
    [
        'sqlite:////etc/cron.d/mlflow',
        'file:///srv/other',
        '/srv/mlflow',
        'http://169.254.169.254/',
        'https://mlflow.example.com.evil.com',
        'https://mlflow.example.com:1',
        'https://mlflow.example.com@evil.com',
        'file:///srv/mlruns/../../etc',
        'file:///srv/mlruns/%2e%2e/etc',
    ],
)
def test_a_tracker_needs_to_be_allowed(submit, monkeypatch, uri):
    make, _ = submit
    callbacks = [{'name': 'MLFlowLogger', 'options': {'experiment': 'e', 'tracking_uri': uri}}]
    for allowed in ('', 'https://mlflow.example.com, file:///srv/mlruns'):
        monkeypatch.setenv('FINETUNER_MLFLOW_URIS', allowed)
        with pytest.raises(
            ParameterError, match='tracking_uri .* is not one that this service .*FINETUNER_MLFLOW_URIS'
        ):
            make(callbacks=callbacks)
        with pytest.raises(ParameterError, match='FINETUNER_MLFLOW_URIS'):
            make(callbacks=callbacks, check_only=True)


@pytest.mark.parametrize('uri', ['https://mlflow.example.com/', 'https://mlflow.example.com/team', None])
def test_an_allowed_tracker_is_taken(submit, monkeypatch, uri):
    make, _ = submit
    monkeypatch.setenv('FINETUNER_MLFLOW_URIS', 'file:///srv/mlruns, https://mlflow.example.com')
    given = {} if uri is None else {'tracking_uri': uri}
    tags = make(callbacks=[{'name': 'MLFlowLogger', 'options': {'experiment': 'e', **given}}])
    assert tags['status'] == 'CREATED'


@pytest.mark.parametrize(
    'arguments',
    [
        {'model': '/etc'},
        {'model': 'local-dir:/etc'},
        {'model': '../../etc'},
        {'model': '~/models'},
        {'model': 'link'},  # it lies in the folder that is allowed, and leads out of it
        {'model': '/nowhere/at/all'},
        {'model': 'hf-hub:/etc'},
        {'model': 'hf-hub:link'},
        {'model': 'local-dir:hf-hub:~/models'},
        {'model': '~nobody-of-this-name/models'},
        {'model': '/' + 5000 * 'x'},
        {'model': 'ViT-B-32::/etc/passwd'},
        {'model': 'resnet-base', 'model_options': {'weights': '/etc/passwd'}},
        {'model': 'ViT-B-32::openai', 'model_options': {'weights': './weights.pt'}},
    ],
)
def test_a_model_on_this_machine_needs_to_be_allowed(submit, monkeypatch, tmp_path, arguments):
    make, _ = submit
    (tmp_path / 'models').mkdir()
    (tmp_path / 'models' / 'link').symlink_to('/etc')
    monkeypatch.chdir(tmp_path / 'models')
    for allowed in ('', str(tmp_path / 'models')):
        monkeypatch.setenv('FINETUNER_MODEL_ROOTS', allowed)
        if arguments['model'].startswith('ViT-B-32::openai') and allowed:
            continue  # that file lies where it may
        with pytest.raises(ParameterError, match='is not below a folder whose models .*FINETUNER_MODEL_ROOTS'):
            make(check_only=True, **arguments)


def test_an_allowed_model_is_taken(submit, monkeypatch, tmp_path):
    make, _ = submit
    (tmp_path / 'models' / 'mine').mkdir(parents=True)
    monkeypatch.setenv('FINETUNER_MODEL_ROOTS', str(tmp_path / 'models'))
    assert make(model=str(tmp_path / 'models' / 'mine'))['status'] == 'CREATED'


@pytest.mark.parametrize('model', ['all-minilm-l6-v2', 'timm/resnet18', 'resnet18', 'ViT-B-32::openai'])
def test_names_need_no_folder(submit, monkeypatch, model):
    make, _ = submit
    monkeypatch.delenv('FINETUNER_MODEL_ROOTS', raising=False)
    assert make(model=model, check_only=True) == {'checked': True}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that answers with an error or not at all; the value is a function, and the cache."""
    cache = tmp_path / 'cache'
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
    monkeypatch.delenv('FINETUNER_RAY_ADDRESS', raising=False)

    def answer(error=None, offline=False):
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', offline)

        def model_info(api, name, **options):
            if error is not None:
                raise error

        monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', model_info)

    return answer, cache


def answered(kind, status):
    request = httpx.Request('GET', 'https://huggingface.co/api/models/x')
    return kind('no', response=httpx.Response(status, request=request))


def test_a_model_that_is_nowhere_is_refused_before_anything_is_sent(submit, hub, monkeypatch):
    make, _ = submit
    answer, cache = hub
    answer(offline=True)
    with pytest.raises(
        ParameterError, match="^the model 'no-such-model' is neither .*: HF_HUB_OFFLINE is set, and the"
    ):
        make(model='no-such-model', check_only=True)
    with pytest.raises(ParameterError, match=r'fetched before\. Did you mean all-minilm-l6-v2\?$'):
        make(model='all-minilm-l6-v1', check_only=True)
    monkeypatch.setenv('FINETUNER_RAY_ADDRESS', 'auto')
    assert make(model='org/name', check_only=True) == {'checked': True}, 'another machine may have it'
    answer(answered(RepositoryNotFoundError, 404))
    with pytest.raises(ParameterError, match="^the model 'org/name' is neither .* hub: it has no such repository"):
        make(model='org/name', check_only=True)
    snapshot = cache / 'models--org--name' / 'snapshots' / ('0' * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / 'refs').mkdir()
    (snapshot.parents[1] / 'refs' / 'main').write_text('0' * 40)
    assert make(model='org/name', check_only=True) == {'checked': True}, 'it is here already'


def test_a_task_whose_model_is_nowhere_is_refused(executor, hub, monkeypatch, tmp_path):
    executor.supervisor.close()
    registry, account = executor.registry, executor.registry.get_account()
    method = {'name': 'shop', 'model': 'all-minilm-l6-v1', 'items': {'loader': 'inline'}}
    (tmp_path / 'methods').mkdir()
    (tmp_path / 'methods' / 'shop.yml').write_text(json.dumps(method))
    monkeypatch.setenv('FINETUNER_METHODS', str(tmp_path / 'methods'))
    hub[0](offline=True)
    parameters = NewTuningTaskParameters(token=registry.create_token(account.id, 'test'), fine_tuning_method='shop')
    with pytest.raises(ParameterError, match=r"^the model 'all-minilm-l6-v1' .* Did you mean all-minilm-l6-v2\?$"):
        executor.create_tuning_task(DocumentArray(), parameters=parameters)
    assert registry.tuning.list_tasks(account.id, 0, 10, None) == []
    (tmp_path / 'model.zip').write_bytes(b'weights')
    run, _ = registry.create_run(account.id, 'default', 'r', {})
    registry.start_run(run.id, 'host:1')
    registry.finish_run(run.id, tmp_path / 'model.zip', {}, {}, alias='shop@production')
    task = executor.create_tuning_task(DocumentArray(), parameters=parameters)[0].tags
    assert task['status'] == 'pending', 'it begins with the model that was promoted'


@pytest.mark.parametrize('error', [None, ConnectionError('no route'), answered(GatedRepoError, 403)])
def test_a_model_that_may_be_there_is_taken(submit, hub, error):
    make, _ = submit
    hub[0](error)
    assert make(model='hf-hub:org/name', check_only=True) == {'checked': True}


def test_a_run_that_an_earlier_version_stored_is_found_again(executor, submit):
    make, _ = submit
    made = make()
    with executor.registry.database.write() as session:
        row = session.scalars(select(RunRow)).one()
        row.config = {name: value for name, value in row.config.items() if name not in ('lora', 'time_limit')}
    assert make()['artifact_id'] == made['artifact_id']
    with pytest.raises(RegistryError, match='with another configuration'):
        make(time_limit=3)


def test_how_a_run_is_worked_on_does_not_make_it_another(executor, submit):
    make, _ = submit
    made = make(priority=3, cpus=2.0, gpus=2.0, memory_limit=1e9, max_retries=0)
    assert [made[name] for name in ('priority', 'attempts', 'queue_position')] == [3, 0, 1]
    config = executor.registry.get_run_by_id(made['id']).config
    assert {name: config[name] for name in ('cpus', 'gpus', 'memory_limit', 'max_retries')} == {
        'cpus': 2.0, 'gpus': 2, 'memory_limit': 1_000_000_000, 'max_retries': 0,
    }  # fmt: skip
    assert make(priority=9)['priority'] == 3, 'it is the same run'
    assert make(run_name='urgent', priority=4)['queue_position'] == 1
    assert make()['queue_position'] == 2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'priority': 1001}, "'priority': input should be less than or equal to 1000, got 1001"),
        ({'priority': 'high'}, "'priority': input should be a valid integer"),
        ({'gpus': -1}, "'gpus': input should be greater than or equal to 0, got -1"),
        ({'gpus': 1.5}, "'gpus': input should be a valid integer"),
        ({'cpus': 0}, "'cpus': input should be greater than 0, got 0"),
        ({'cpus': float('nan')}, "'cpus': input should be"),
        ({'memory_limit': 1}, "'memory_limit': input should be greater than or equal to 67108864, got 1"),
        ({'max_retries': 101}, "'max_retries': input should be less than or equal to 100, got 101"),
        ({'gpus': 2, 'device': 'cpu'}, "gpus is 2 and device 'cpu': give device 'cuda', or no gpus"),
        ({'max_retrys': 1}, 'max_retrys'),
    ],
)
def test_what_cannot_be_asked_of_the_scheduler_is_refused(submit, arguments, message):
    make, _ = submit
    with pytest.raises(ParameterError) as caught:
        make(check_only=True, **arguments)
    assert message in str(caught.value)


def test_a_run_is_found_by_its_id_alone_and_no_other_of_its_name(executor, submit):
    make, token = submit
    first = make()
    by_id = RunParameters(token=token, run_id=first['id'])
    assert executor.status(DocumentArray(), parameters=by_id)[0].tags == first
    stranger = executor.registry.create_token(executor.registry.create_account('other').id, 'test')
    wrong = [
        RunParameters(token=stranger, run_id=first['id']),
        RunParameters(token=token, run_id='f' * 24),
        RunParameters(token=token, run_id=first['id'], run_name='another'),
    ]
    for parameters in wrong:
        with pytest.raises(RegistryError, match='There is no run of the id'):
            executor.status(DocumentArray(), parameters=parameters)
    executor.delete_run(DocumentArray(), parameters=by_id)
    assert make()['id'] != first['id']
    with pytest.raises(RegistryError, match='There is no run of the id'):
        executor.cancel(DocumentArray(), parameters=RunParameters(token=token, run_id=first['id'], run_name='r'))
    with pytest.raises(ParameterError, match="'run_name' is missing"):
        RunParameters(token=token)
