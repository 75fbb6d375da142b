"""The documented way of a job, from login to the end, as it was written for Jina AI's Finetuner: over gRPC, and with
the same names awaited."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import finetuner
from finetuner import aio
from finetuner.callback import EvaluationCallback
from finetuner.client import session
from finetuner.data import read_csv
from finetuner.documents import DocumentArray
from finetuner.excepts import RegistryError, RunInProgressError

FRUITS = ('apple', 'fig', 'pear', 'plum')


@pytest.fixture
def train_data(service, monkeypatch, tmp_path):
    """Labelled texts; clients know the service."""
    monkeypatch.setattr(session, '_current', None)
    monkeypatch.setenv('FINETUNER_HOST', f'grpc://localhost:{service.port}')
    monkeypatch.setenv('JINA_AUTH_TOKEN', service.token)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'train.csv'
    path.write_text(''.join(f'{fruit} {word},{fruit}\n' for fruit in FRUITS for word in ('pie', 'jam', 'tart')))
    return path


def test_the_documented_sequence(train_data, tiny_model, capsys):
    finetuner.login()
    experiment = finetuner.create_experiment(name='finetune-fruits')
    data = DocumentArray(read_csv(train_data))
    run = finetuner.fit(
        model=str(tiny_model),
        train_data=data,
        eval_data=None,
        run_name='fruits-run',
        description='fine-tune on fruits',
        experiment_name='finetune-fruits',
        loss='TripletMarginLoss',
        miner='TripletMarginMiner',
        miner_options={'margin': 0.2},
        optimizer='Adam',
        optimizer_options={'weight_decay': 0.01},
        learning_rate=1e-4,
        epochs=1,
        batch_size=8,
        callbacks=[EvaluationCallback(query_data=data, index_data=data, limit=3, gather_examples=True)],
        scheduler='linear',
        scheduler_options={'scheduler_step': 'batch'},
        freeze=False,
        device='cpu',
        num_workers=4,
        to_onnx=False,
    )
    assert run.name == 'fruits-run'
    assert run.status()['status'] in ('CREATED', 'STARTED')
    with pytest.raises(RunInProgressError, match='^The run needs to be finished in order to save the artifact.'):
        run.save_artifact()

    log = ''
    for entry in run.stream_logs(interval=1):
        log += entry
    assert log and finetuner.get_run('fruits-run', experiment_name='finetune-fruits').logs() == log
    assert run.status()['status'] == 'FINISHED'

    metrics = run.metrics()
    assert set(metrics) == {'before', 'after'} and 0 <= metrics['after']['average_precision'] <= 1
    examples = run.example_results()
    assert all(len(matches) == 3 for matches in examples['after'].values()) and len(examples['after']) > 3
    run.display_metrics()
    run.display_examples(k=2)
    shown = capsys.readouterr().out
    assert 'average_precision' in shown and 'fig jam' in shown

    assert run.save_artifact(directory='artifacts/') == 'artifacts/fruits-run.zip'
    assert Path('artifacts/fruits-run.zip').stat().st_size > 10_000
    assert [found.name for found in experiment.list_runs()] == ['fruits-run']
    by_name = finetuner.get_model('finetune-fruits/fruits-run', device='cpu')
    by_id = finetuner.get_model(run.artifact_id, token=finetuner.get_token(), device='cpu')
    assert by_name.dim == by_id.dim == 32

    finetuner.delete_run('fruits-run', experiment_name='finetune-fruits')
    with pytest.raises(RegistryError):
        finetuner.get_run('fruits-run', experiment_name='finetune-fruits')
    finetuner.delete_experiment('finetune-fruits')
    assert 'finetune-fruits' not in [found.name for found in finetuner.list_experiments()]


@pytest.mark.slow
def test_two_jobs_awaited_together(train_data, tiny_model):
    async def job(name):
        experiment = await aio.create_experiment('together')
        settings = {'epochs': 1, 'batch_size': 8, 'device': 'cpu'}
        run = await experiment.create_training_run(str(tiny_model), train_data, name, **settings)
        pieces = [piece async for piece in run.stream_logs()]
        await run.wait(timeout=60)
        path = await run.save_artifact(name)
        return ''.join(pieces) == await run.logs() != '', Path(path).name

    async def work():
        await aio.login()
        done = await asyncio.gather(job('one'), job('two'))
        await aio.delete_experiment('together')
        return done

    assert asyncio.run(work()) == [(True, 'one.zip'), (True, 'two.zip')]
