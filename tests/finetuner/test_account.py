"""The account, its data sets, artifacts and aliases; who we are; and runs that are told apart by their ids."""

from __future__ import annotations

import hashlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import finetuner
from finetuner import settings
from finetuner.artifact import ModelInfo, pack
from finetuner.client import session
from finetuner.documents import Document
from finetuner.excepts import AuthenticationError, FinetunerServerError, RegistryError, RunInProgressError
from finetuner.results import Alias, Amount, DatasetInfo, Progress, RunCounts, TokenInfo, Usage

TIME = '2026-01-02T03:04:05+00:00'
ID = '0123456789abcdef01234567'
DATASET = {
    'name': 'fruits', 'rows': 32.0, 'size': 3e9, 'digest': 'd', 'shape': 'single', 'modalities': ['text'],
    'labelled': True, 'scored': False, 'created_at': TIME,
}  # fmt: skip
ALIAS = {
    'alias': 'support@production', 'artifact_id': ID, 'number': 2.0, 'experiment_name': 'default',
    'run_name': 'brisk-heron', 'created_at': TIME,
}  # fmt: skip


def test_tokens(service):
    token = {'id': 't1', 'name': 'laptop', 'created_at': TIME, 'expires_at': None}
    service.endpoints['/create_token'] = lambda *_: {**token, 'token': 'secret'}
    service.endpoints['/tokens'] = lambda *_: {'items': [{**token, 'revoked_at': None}], 'total': 1}
    service.endpoints['/revoke_token'] = lambda *_: {**token, 'revoked_at': TIME}
    made = finetuner.create_token('laptop', days=30)
    assert made.token == 'secret' and 'secret' not in repr(made)
    finetuner.create_token('server')
    assert service.parameters('/create_token') == [{'name': 'laptop', 'days': 30}, {'name': 'server'}]
    assert finetuner.list_tokens(size=10) == [TokenInfo('t1', 'laptop', TIME)]
    assert service.parameters('/tokens') == [{'page': 1, 'size': 10}]
    assert finetuner.revoke_token('t1').revoked_at == TIME
    assert service.parameters('/revoke_token') == [{'id': 't1'}]


def test_usage(service):
    service.endpoints['/usage'] = lambda *_: {
        'account': 'local',
        'datasets': {'count': 2.0, 'bytes': 5e9},
        'artifacts': {'count': 1, 'bytes': 10},
        'checkpoints': {'count': 0, 'bytes': 0},
        'runs': {'waiting': 0, 'at_work': 1, 'total': 3},
        'max_bytes': 1e10,
        'max_runs': None,
        'search_items': {'count': 4, 'bytes': 50},
        'max_search_bytes': 1e9,
        'something_new': {},
    }
    assert finetuner.usage() == Usage(
        account='local',
        datasets=Amount(2, 5_000_000_000),
        artifacts=Amount(1, 10),
        checkpoints=Amount(0, 0),
        runs=RunCounts(0, 1, 3),
        max_bytes=10_000_000_000,
        search_items=Amount(4, 50),
        max_search_bytes=1_000_000_000,
    )
    assert finetuner.whoami() == 'local'
    service.endpoints['/usage'] = lambda *_: {'account': 'local', 'datasets': 'many'}
    with pytest.raises(FinetunerServerError, match='datasets, artifacts, checkpoints, runs.*another version'):
        finetuner.usage()


def test_datasets(service):
    part = {'part': 0.0, 'rows': 32, 'size': 300, 'sha256': 's', 'content_digest': 'c'}
    service.endpoints['/datasets'] = lambda *_: {'items': [DATASET]}
    service.endpoints['/dataset'] = lambda *_: {**DATASET, 'parts': [part], 'parts_total': 1}
    service.endpoints['/delete_dataset'] = lambda *_: DATASET
    (found,) = finetuner.list_datasets()
    assert found == DatasetInfo('fruits', 32, 3_000_000_000, 'd', TIME, 'single', ('text',), labelled=True)
    assert finetuner.get_dataset('fruits', page=2).parts[0].rows == 32
    assert service.parameters('/dataset') == [{'name': 'fruits', 'page': 2, 'size': 50}]
    assert finetuner.delete_dataset('fruits').name == 'fruits'


def test_aliases(service):
    promotion = {
        'alias': 'support@production',
        'artifact_id': ID,
        'number': 2,
        'previous': 'f' * 24,
        'created_at': TIME,
    }
    service.endpoints['/promote'] = service.endpoints['/rollback'] = lambda *_: promotion
    service.endpoints['/aliases'] = lambda *_: {'items': [ALIAS]}
    history = [{'number': number, 'artifact_id': ID, 'created_at': TIME} for number in (2, 1)]
    service.endpoints['/alias'] = lambda *_: {**ALIAS, 'history': history}
    assert finetuner.promote('support@production', 'default/brisk-heron').previous == 'f' * 24
    assert service.parameters('/promote') == [{'alias': 'support@production', 'artifact': 'default/brisk-heron'}]
    assert finetuner.rollback('support@production').number == 2
    assert finetuner.list_aliases() == [Alias('support@production', ID, 2, 'default', 'brisk-heron', TIME)]
    service.endpoints['/delete_alias'] = lambda *_: promotion
    assert finetuner.delete_alias('support@production').artifact_id == ID
    assert [past.number for past in finetuner.get_alias('support@production').history] == [2, 1]


def test_artifacts(service):
    record = {
        'id': ID, 'name': 'brisk-heron', 'experiment_name': 'default', 'run_name': 'brisk-heron', 'size': 8e10,
        'sha256': 's', 'public': False, 'created_at': TIME, 'aliases': ['support@production'],
    }  # fmt: skip
    service.endpoints['/artifacts'] = lambda *_: {'items': [record]}
    (found,) = finetuner.list_artifacts()
    assert (found.size, found.aliases) == (80_000_000_000, ('support@production',))


@pytest.fixture(scope='module')
def archive(tiny_model, tmp_path_factory):
    """The zip of an artifact with `tiny_model` alone."""
    folder = tmp_path_factory.mktemp('archive')
    shutil.copytree(tiny_model, folder / 'models' / 'model')
    info = {'model': ModelInfo(dim=24, max_length=32)}
    return pack(folder, folder / 'tiny.zip', name='tiny', config={}, metrics={}, models=info)


@pytest.fixture
def stored(service, run_record, archive):
    """A service that has the artifact under the id ID."""
    content = archive.read_bytes()

    def artifact(parameters, documents):
        if parameters['artifact_id'] != ID:
            raise RegistryError(f'there is no artifact {parameters["artifact_id"]}')
        offset, length = int(parameters['offset']), int(parameters['length'])
        tags = {'size': len(content), 'sha256': hashlib.sha256(content).hexdigest(), 'offset': offset}
        return [Document(blob=content[offset : offset + length], tags=tags)]

    def status(parameters, documents):
        if parameters['run_name'] == 'waiting':
            waiting = run_record('CREATED', name='waiting', experiment_name='support')
            return waiting(parameters, documents)
        if (parameters['experiment_name'], parameters['run_name']) != ('support', 'brisk-heron'):
            raise RegistryError(f'there is no run {parameters["run_name"]}')
        return run_record('FINISHED')(parameters, documents)

    service.endpoints.update({'/artifact': artifact, '/status': status, '/alias': lambda *_: ALIAS})
    return content


@pytest.mark.parametrize('name', [ID, 'support/brisk-heron', 'support@production'])
def test_an_artifact_is_downloaded_by_whatever_names_it(stored, tmp_path, name):
    path = finetuner.download_artifact(name, tmp_path)
    assert path == tmp_path / f'{ID}.zip' and path.read_bytes() == stored


def test_two_artifacts_on_their_way_to_one_name_are_kept_apart(service, run_record, tmp_path, monkeypatch):
    monkeypatch.setattr('finetuner.client.artifacts.PIECE', 4)
    contents = {'slow': b'slow' * 3, 'fast': b'fast' * 2}
    began, went_by = threading.Event(), threading.Event()

    def artifact(parameters, documents):
        content, offset = contents[parameters['artifact_id']], int(parameters['offset'])
        if parameters['artifact_id'] == 'slow' and offset:
            began.set()
            assert went_by.wait(5)
        tags = {'size': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
        return [Document(blob=content[offset : offset + 4], tags=tags)]

    def status(parameters, documents):
        name = parameters['experiment_name']
        return run_record('FINISHED', experiment_name=name, artifact_id=name)(parameters, documents)

    service.endpoints.update({'/artifact': artifact, '/status': status})
    slow, fast = (finetuner.get_run('brisk-heron', experiment_name=name) for name in contents)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(slow.save_artifact, tmp_path / 'artifacts')
        assert began.wait(5)
        path = Path(fast.save_artifact(tmp_path / 'artifacts'))
        assert path.read_bytes() == contents['fast']
        went_by.set()
        assert first.result() == str(path)
    assert path.read_bytes() == contents['slow']
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('name', [ID, 'support/brisk-heron', 'support@production'])
def test_a_model_is_loaded_by_whatever_names_it(stored, name):
    assert finetuner.get_model(name, device='cpu').dim == 24


def test_a_run_that_is_not_finished_has_no_model(stored):
    with pytest.raises(RunInProgressError, match='^The run needs to be finished'):
        finetuner.get_model('support/waiting')


def test_a_path_that_exists_is_a_path(stored, service, archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'support').mkdir()
    for name in ('support/brisk-heron', 'support@production'):
        (tmp_path / name).symlink_to(archive)
        finetuner.get_model(name, device='cpu')
    assert not service.calls


def test_a_hub_id_stays_one(stored, service, monkeypatch):
    for known in ('jinaai/jina-embedding-s-en-v1', 'timm/resnet18'):
        with pytest.raises(Exception, match='jina-embedding-s-en-v1|resnet18'):
            finetuner.get_model(known, device='cpu')
    assert not service.calls
    with pytest.raises(Exception, match='some-organization/some-model'):
        finetuner.get_model('some-organization/some-model', device='cpu')
    assert service.parameters('/status') == [{'experiment_name': 'some-organization', 'run_name': 'some-model'}]
    monkeypatch.setenv('FINETUNER_HOST', 'grpc://localhost:1')
    with (
        pytest.warns(UserWarning, match='no service answers.*is taken for a model of the hub'),
        pytest.raises(Exception, match='some-organization/some-model'),
    ):
        finetuner.get_model('some-organization/some-model', device='cpu')
    with pytest.raises(FinetunerServerError, match='no service answers'):
        finetuner.get_model('support@production')


def test_a_handle_never_finds_another_run_of_the_same_name(service, run_record):
    service.endpoints['/status'] = run_record('CREATED', id='r1')
    run = finetuner.get_run('brisk-heron')
    assert run.id == 'r1'

    def status(parameters, documents):
        if parameters.get('run_id') == 'r1':
            raise RegistryError('there is no run of the id r1 any more')
        return run_record('FINISHED', id='r2')(parameters, documents)

    for endpoint in ('/status', '/cancel', '/resume', '/logs'):
        service.endpoints[endpoint] = status
    for call in (run.status, run.progress, run.cancel, run.resume, run.logs, run.wait):
        with pytest.raises(RegistryError, match='any more'):
            call()
    assert finetuner.get_run('brisk-heron').id == 'r2'


def test_progress_is_typed(service, run_record):
    told = {'stage': 'Training', 'step': 3.0, 'steps': 9.0, 'epoch': 2.0, 'epochs': 5.0, 'loss': 0.5, 'eta': 62.5}
    service.endpoints['/status'] = run_record('STARTED', progress=told, attempts=2.0, queue_position=None)
    progress = finetuner.get_run('brisk-heron').progress()
    assert progress == Progress('Training', 2, 5, 3, 9, 0.5, None, 62.5, attempt=2)
    service.endpoints['/status'] = run_record('CREATED', queue_position=3.0, attempts=0)
    assert finetuner.get_run('brisk-heron').progress() == Progress(queue_position=3)


def test_how_a_run_is_scheduled_is_sent_where_it_is_given(service, run_record):
    service.endpoints['/fit'] = run_record('CREATED')
    finetuner.fit('m', 'my-data', run_name='r')
    finetuner.fit('m', 'my-data', run_name='r', priority=5, cpus=2, gpus=1, memory_limit=1 << 34, max_retries=0)
    plain, given = service.parameters('/fit')
    wanted = {'priority': 5, 'cpus': 2, 'gpus': 1, 'memory_limit': 1 << 34, 'max_retries': 0}
    assert not wanted.keys() & plain.keys() and {name: given[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ('model', 'told'), [('all-minilm-l6-v3', True), ('org/all-minilm-l6-v3', False), ('xyz', False)]
)
def test_a_misspelt_model_is_noticed(service, run_record, caplog, model, told):
    service.endpoints['/fit'] = run_record('CREATED')
    finetuner.fit(model, 'my-data', run_name='r')
    assert ('did you mean all-minilm-l6-v2?' in caplog.text) == told


def test_wrong_tokens_are_told_with_their_place(service, monkeypatch):
    good = settings.load_token()
    monkeypatch.setenv('FINETUNER_TOKEN', 'wrong')
    with pytest.raises(
        AuthenticationError, match=f'^{service.host} refused the token in FINETUNER_TOKEN: the token is'
    ):
        finetuner.login()
    monkeypatch.delenv('FINETUNER_TOKEN')
    settings.save_token('wrong')
    with pytest.raises(AuthenticationError, match='refused the token in .*credentials.json: '):
        finetuner.login()
    with pytest.raises(AuthenticationError, match='refused the token: '):
        finetuner.login(token='wrong, too')
    finetuner.login(token=good)
    assert settings.load_token() == good


def test_wrong_hosts_are_told(service):
    with pytest.raises(ValueError, match="the host 'ftp://team' is not an address: write grpc://name:port"):
        finetuner.login(host='ftp://team')
    with pytest.raises(FinetunerServerError, match='no service answers at grpc://localhost:1: start one with'):
        finetuner.login(host='grpc://localhost:1')
    assert settings.host() == service.host, 'what did not work is not kept'


def test_logout_forgets_the_token(service, monkeypatch):
    token = settings.load_token()
    monkeypatch.delenv('FINETUNER_TOKEN')
    finetuner.login(token=token)
    settings.save_token('of the team', 'grpc://team:51000')
    finetuner.logout()
    assert settings.load_token() is None and session._current is None
    assert settings.load_token('grpc://team:51000') == 'of the team'
    with pytest.raises(AuthenticationError, match='there is no token'):
        finetuner.whoami()
    finetuner.logout()
    monkeypatch.setenv('JINA_AUTH_TOKEN', token)
    with pytest.raises(AuthenticationError, match='the token in JINA_AUTH_TOKEN is still used: unset it'):
        finetuner.logout()
