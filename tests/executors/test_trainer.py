"""The trainer without a Flow around it."""

import pytest

from executors import trainer
from executors.parameters import FitParameters
from finetuner.documents import Document, DocumentArray


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
