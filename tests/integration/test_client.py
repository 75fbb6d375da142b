"""The client and the command line against the real services: data in, a tuned model out, embeddings."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import requests

import finetuner
from finetuner.callback import EvaluationCallback
from finetuner.client import session
from finetuner.client.encoding import encode_remotely
from finetuner.data import read_csv
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import (
    ArtifactError,
    AuthenticationError,
    DataError,
    FinetunerServerError,
    ParameterError,
    RegistryError,
    RunFailedError,
    RunInProgressError,
)

FRUITS = ('apple', 'fig', 'pear', 'plum')


@pytest.fixture
def client(service, monkeypatch):
    monkeypatch.setattr(session, '_current', None)
    monkeypatch.setenv('FINETUNER_HOST', f'grpc://localhost:{service.port}')
    monkeypatch.setenv('FINETUNER_TOKEN', service.token)
    return finetuner


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """train.csv and test.csv with a header."""
    folder = tmp_path_factory.mktemp('csv')
    for name, words in (('train', ('pie', 'juice', 'tree', 'jam', 'cake')), ('test', ('salad', 'tart'))):
        with (folder / f'{name}.csv').open('w', newline='') as file:
            rows = [(f'{fruit} {word}, please', fruit) for fruit in FRUITS for word in words]
            csv.writer(file).writerows([('text', 'category'), *rows])
    return folder


def test_from_csv_to_embeddings(client, files, tiny_model, tmp_path, capsys):
    client.login()
    index = DocumentArray(read_csv(files / 'train.csv'))
    callback = EvaluationCallback(files / 'test.csv', index, limit=3, gather_examples=True)
    run = client.fit(
        str(tiny_model),
        str(files / 'train.csv'),
        run_name='from-csv',
        epochs=2,
        batch_size=8,
        callbacks=[callback],
        device='cpu',
        description='a test',
    )
    assert run.name == 'from-csv' and run.config['train_data'] == 'finetuner-dastorage-default-from-csv-train'

    log = ''.join(run.stream_logs(interval=1))
    assert run.wait().status()['status'] == 'FINISHED'
    assert log == run.logs() and log

    metrics = run.metrics()
    assert set(metrics) == {'before', 'after'} and 0 <= metrics['after']['average_precision'] <= 1
    examples = run.example_results()
    queries = {f'{fruit} {word}, please' for fruit in FRUITS for word in ('salad', 'tart')}
    assert set(examples['after']) <= queries and all(len(found) == 3 for found in examples['after'].values())
    run.display_metrics()
    run.display_examples(k=2)
    shown = capsys.readouterr().out
    assert 'average_precision' in shown and 'please' in shown

    path = run.save_artifact(str(tmp_path / 'artifacts'))
    assert path == str(tmp_path / 'artifacts' / 'from-csv.zip')
    model = client.get_model(path)
    texts = ['fig jam', 'plum tree']
    embeddings = client.encode(model, texts)
    documents = client.encode(model, DocumentArray([Document(text=text) for text in texts]))
    np.testing.assert_allclose(embeddings, documents.embeddings, atol=1e-6)
    by_id = client.get_model(run.artifact_id, token=client.get_token())
    np.testing.assert_allclose(client.encode(by_id, texts), embeddings, atol=1e-6)

    again = client.fit(
        str(tiny_model),
        str(files / 'train.csv'),
        run_name='from-csv',
        epochs=2,
        batch_size=8,
        callbacks=[callback],
        device='cpu',
        description='a test',
    )
    assert again.artifact_id == run.artifact_id
    assert 'from-csv' in [listed.name for listed in client.list_runs()]
    assert client.get_run('from-csv').created_at == run.created_at


@pytest.mark.slow
def test_the_same_documents_again_are_the_same_run(client, tiny_model):
    def fit():
        documents = [
            Document(text=f'{fruit} {word}', tags={'finetuner_label': fruit, 'word': word})
            for fruit in FRUITS
            for word in ('pie', 'juice')
        ]
        return client.fit(str(tiny_model), documents, run_name='again', epochs=1, device='cpu')

    first = fit().wait()
    assert fit().artifact_id == first.artifact_id


def test_malformed_data_names_its_place(client, tiny_model, tmp_path):
    with pytest.raises(DataError, match=r'documents\[1\]'):
        client.fit(str(tiny_model), [Document(text='a', tags={'finetuner_label': 'x'}), Document()])
    (tmp_path / 'x.csv').write_text('a,x\nb\n')
    with pytest.raises(DataError, match='x.csv, line 2'):
        client.fit(str(tiny_model), tmp_path / 'x.csv')


def test_wrong_arguments_are_refused_before_the_upload(client, files, tiny_model):
    with pytest.raises(ParameterError, match='TripletMarginLoss'):
        client.fit(str(tiny_model), str(files / 'train.csv'), run_name='mistyped', loss='TripletMarginLos')
    with pytest.raises(RegistryError, match='finetuner-dastorage-default-mistyped-train'):
        client.fit(str(tiny_model), 'finetuner-dastorage-default-mistyped-train', run_name='no-data')


def test_what_the_service_refuses_is_raised_here(client, tiny_model):
    with pytest.raises(RegistryError, match='no-such-set'):
        client.fit(str(tiny_model), 'no-such-set')
    with pytest.raises(ValueError, match='TripletMarginLos'):
        client.fit(str(tiny_model), 'fruits', loss='TripletMarginLos')
    with pytest.raises(RegistryError, match='no-such-run'):
        client.get_run('no-such-run')
    with pytest.raises(AuthenticationError):
        client.login(token='wrong')


def test_a_failed_run_says_why(client, tmp_path):
    (tmp_path / 'no-model').mkdir()
    run = client.fit(str(tmp_path / 'no-model'), 'fruits', device='cpu')
    with pytest.raises(RunFailedError, match='no-model'):
        run.wait()
    assert 'no-model' in run.logs()


def test_a_model_that_is_not_there_is_refused_before_there_is_a_run(client, tmp_path):
    before = len(client.list_runs())
    with pytest.raises(ParameterError, match='neither a model directory, nor a hub id, nor one of the short names'):
        client.fit(str(tmp_path / 'nowhere'), 'fruits', device='cpu')
    assert len(client.list_runs()) == before


def test_the_service_encodes(client):
    embeddings = encode_remotely(['fig jam', 'plum tree', 'fig jam'])
    assert embeddings.shape == (3, 32) and embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings[0], embeddings[2], atol=1e-6)


def command(service, *arguments, **options):
    environment = {**service.environment, 'FINETUNER_HOST': f'grpc://localhost:{service.port}'}
    options = {'capture_output': True, 'text': True, 'env': environment, **options}
    return subprocess.run([sys.executable, '-c', RUN_CLI, *map(str, arguments)], **options)


RUN_CLI = 'from finetuner.cli import app; app()'


def test_the_command_line_from_fit_to_encode(service, files, tiny_model, tmp_path):
    def run(*arguments):
        done = command(service, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert 'Next: finetuner ' in done.stderr
        return done.stdout

    assert 'as local' in run('login')
    settings = ('--model', tiny_model, '--epochs', 1, '--batch-size', 8, '--device', 'cpu')
    done = run('fit', files / 'train.csv', '--eval-data', files / 'test.csv', '--name', 'by-command', *settings)
    assert 'average_precision' in done and 'finished' in done
    again = run(
        'fit', files / 'train.csv', '--eval-data', files / 'test.csv', '--name', 'by-command', '--detach', *settings
    )
    assert 'is there already' in again
    assert 'by-command' in run('runs')
    assert 'FINISHED' in run('status', 'by-command')
    assert run('logs', 'by-command') == run('logs', '-f', 'by-command') != ''
    assert 'average_precision' in run('metrics', 'by-command')
    assert 'please' in run('examples', 'by-command', '-k', 2)
    assert 'artifacts/by-command.zip' in run('pull', 'by-command')

    assert '2 × 32 float32' in run('encode', 'fig jam', 'plum tree')
    (tmp_path / 'texts.txt').write_text('fig jam\nplum tree\n')
    run('encode', '--artifact', 'artifacts/by-command.zip', '--file', 'texts.txt', '-o', 'out.npy')
    assert np.load(tmp_path / 'out.npy').shape == (2, 32)
    lines = run('encode', 'fig jam', '-o', '-').splitlines()
    assert [json.loads(line)['text'] for line in lines] == ['fig jam']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('status', 'no-such-run'), 'no-such-run'),
        (('fit', 'nowhere.csv'), 'nowhere.csv does not exist'),
        (('fit', 'fruits', '--loss', 'NoLoss'), 'NoLoss'),
        (('encode', 'x', '--artifact', 'nowhere.zip'), 'nowhere.zip'),
        (('encode',), 'nothing to encode'),
        (('encode', 'x', '-o', 'x.txt'), 'must end in .npy or .jsonl'),
    ],
)
def test_errors_of_the_command_line_are_one_sentence(service, arguments, message):
    done = command(service, *arguments)
    assert done.returncode == 1
    assert message in done.stderr and 'Traceback' not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_debug_shows_the_traceback(service):
    done = command(service, 'encode', '--debug')
    assert done.returncode == 1 and 'Traceback' in done.stderr


@pytest.mark.slow
def test_serve_starts_a_service_and_ends_with_it(tiny_model, tmp_path, service):
    environment = {**service.environment, 'FINETUNER_HOME': str(tmp_path), 'PYTHONUNBUFFERED': '1'}
    port = service.port + 1
    ports = ('--port', str(port), '--http-port', str(port + 1))
    with (tmp_path / 'log').open('w') as log:
        process = subprocess.Popen(
            [sys.executable, '-c', RUN_CLI, 'serve', str(tiny_model), *ports],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while 'Finetuner is ready' not in (text := (tmp_path / 'log').read_text()):
            assert process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.2)
        assert f'grpc://localhost:{port}' in text
        assert f'FINETUNER_HOST=grpc://localhost:{port} finetuner encode' in text
        assert requests.get(f'http://localhost:{port + 1}/docs', timeout=10).status_code == 200
        done = command(service, 'encode', 'fig', env={**environment, 'FINETUNER_HOST': f'grpc://localhost:{port}'})
        assert '1 × 32' in done.stdout, done.stderr
        taken = command(service, 'serve', *ports)
        assert taken.returncode == 1 and f'port {port} cannot be used' in taken.stderr.lower()
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not psutil.wait_procs(children, 10)[1]
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def test_nobody_there_is_said_in_one_sentence(service):
    environment = {**service.environment, 'FINETUNER_HOST': 'grpc://localhost:1', 'FINETUNER_TOKEN': 'x'}
    done = command(service, 'runs', env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith('No service answers at grpc://localhost:1: start one with `finetuner serve`')
    assert os.environ.get('FINETUNER_TOKEN') is None
    with pytest.raises(FinetunerServerError):
        session.Session('grpc://localhost:1', 'x').request('/whoami')


@pytest.mark.slow
def test_experiments_are_made_listed_and_deleted(client, tiny_model, files, tmp_path):
    made = client.create_experiment('support', 'Questions of customers')
    assert (made.name, made.status, made.description, made.runs) == ('support', 'ACTIVE', 'Questions of customers', 0)
    run = made.create_training_run(
        str(tiny_model), files / 'train.csv', run_name='first', epochs=1, batch_size=8, device='cpu'
    ).wait()
    path, artifact = run.save_artifact(str(tmp_path)), run.artifact_id
    again = client.create_experiment('support')
    assert (again.description, again.runs, [found.name for found in again.list_runs()]) == (
        'Questions of customers',
        1,
        ['first'],
    )
    assert 'support' in [found.name for found in client.list_experiments()]
    assert again.get_run('first').artifact_id == artifact

    again.delete_run('first')
    with pytest.raises(RegistryError, match="There is no run 'first' in the experiment 'support'"):
        again.get_run('first')
    with pytest.raises(ArtifactError, match='There is no artifact'):
        run.save_artifact(str(tmp_path / 'again'))
    assert finetuner.get_model(path).dim == 32, "what was downloaded is the user's"
    assert client.delete_experiment('support').runs == 0
    with pytest.raises(RegistryError, match="There is no experiment 'support'"):
        client.get_experiment('support')


@pytest.mark.slow
def test_a_run_at_work_is_cancelled_before_it_is_deleted(client, service, tiny_model, files):
    given = {'model': str(tiny_model), 'train_data': files / 'train.csv', 'batch_size': 8, 'device': 'cpu'}
    run = client.fit(run_name='long', epochs=10_000, **given)
    worker = service.worker_of('long')
    with pytest.raises(RunInProgressError, match="'long' of the experiment 'default' is at work: cancel it first"):
        client.delete_run('long')
    assert run.cancel()['status'] == 'CANCELLED'
    client.delete_run('long')  # at once: the worker is yet to notice
    worker.wait(30)
    client.fit(run_name='later', epochs=1, **given).wait()  # those who look after runs are not confused
    client.delete_run('later')
