"""The trainer without a Flow around it."""

import pytest

from executors import trainer
from executors.parameters import FitParameters, RunParameters
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import RegistryError, RunFailedError


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
        parameters = FitParameters(token=token, model='all-minilm-l6-v2', train_data='data', run_name='r', **arguments)
        return executor.fit(DocumentArray(), parameters=parameters)[0].tags

    return make, token


def test_a_run_is_cancelled_and_resumed(executor, submit, tmp_path):
    make, token = submit
    make()
    parameters = RunParameters(token=token, run_name='r')

    def tags(endpoint):
        return endpoint(DocumentArray(), parameters=parameters)[0].tags

    assert tags(executor.cancel)['status'] == 'CANCELLED'
    assert tags(executor.cancel)['details'] == "Cancelled by the account 'local'"
    with pytest.raises(RunFailedError, match="the run r was cancelled: Cancelled by the account 'local'"):
        executor.metrics(DocumentArray(), parameters=parameters)
    assert make()['status'] == 'CANCELLED'  # the same run
    assert tags(executor.resume)['status'] == tags(executor.resume)['status'] == 'CREATED'
    run = executor.registry.list_runs(executor.registry.get_account().id)[0]
    executor.registry.start_run(run.id, 'host:1')
    (tmp_path / 'a.zip').write_bytes(b'zip')
    executor.registry.finish_run(run.id, tmp_path / 'a.zip', {}, {})
    assert tags(executor.cancel)['status'] == 'FINISHED'
    with pytest.raises(RegistryError, match="the run 'r' has finished: there is nothing to go on with"):
        tags(executor.resume)


def test_a_token_of_a_tracker_is_kept_for_the_worker_alone(executor, submit):
    make, _ = submit
    tags = make(callbacks=[{'name': 'WandBLogger', 'options': {'token': 's3cr3t', 'wandb_args': {'project': 'p'}}}])
    assert 's3cr3t' not in repr(tags)
    run = executor.registry.list_runs(executor.registry.get_account().id)[0]
    assert 's3cr3t' not in repr(run)
    assert 's3cr3t' in (executor.registry.run_directory(run.id) / 'secrets.json').read_text()
    home = executor.registry.home
    assert [file.name for file in home.rglob('*') if file.is_file() and b's3cr3t' in file.read_bytes()] == [
        'secrets.json'
    ]
