from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import socket

import numpy as np
import pytest

from finetuner import settings
from finetuner.cli import app
from finetuner.client import session
from finetuner.documents import Document
from finetuner.excepts import RegistryError
from finetuner.run import Run


@pytest.fixture
def finetuner(capsys):
    """Run a command; the value is (exit code, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            app([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


def give_stdin(monkeypatch, text):
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(text.encode()), encoding='utf-8'))


@pytest.fixture
def training(service, run_record):
    """A service that takes one data set and finishes every run."""

    def status(parameters, documents):
        if parameters['run_name'] != 'brisk-heron':
            raise RegistryError(f'there is no run {parameters["run_name"]}')
        return run_record('FINISHED')(parameters, documents)

    service.endpoints.update(
        {
            '/ingest': lambda parameters, documents: {'rows': len(documents)},
            '/fit': run_record('CREATED'),
            '/status': status,
            '/metrics': lambda *_: {'before': {'hit_at_k': 0.5}, 'after': {'hit_at_k': 0.75}},
            '/runs': lambda *arguments: {'items': [run_record('FINISHED')(*arguments)]},
        }
    )
    return service


def test_help_and_no_arguments_list_the_commands(finetuner):
    code, out, _ = finetuner('--help')
    assert code == 0
    for command in (
        'serve',
        'login',
        'fit',
        'runs',
        'experiments',
        'delete',
        'status',
        'logs',
        'metrics',
        'examples',
        'pull',
        'encode',
        'cancel',
        'resume',
    ):
        assert command in out
    assert 'finetuner serve' in out


def test_login_says_where_and_who(service, finetuner):
    code, out, err = finetuner('login')
    assert code == 0
    assert service.host in out and 'local' in out
    assert err == 'Next: finetuner fit train.csv --eval-data test.csv\n'


def test_login_reads_the_token_from_stdin(service, finetuner, monkeypatch):
    token = settings.load_token()
    monkeypatch.delenv('FINETUNER_TOKEN')
    give_stdin(monkeypatch, f'{token}\n')
    assert finetuner('login', '--token', '-')[0] == 0
    assert settings.load_token() == token
    give_stdin(monkeypatch, '')
    assert finetuner('login', '--token', '-')[::2] == (1, '--token - was given, but there is no token on stdin\n')


def test_fit_follows_the_run_and_shows_the_gain(training, finetuner, tmp_path):
    (tmp_path / 'train.csv').write_text('a,x\nb,x\n')
    (tmp_path / 'test.csv').write_text('c,x\n')
    arguments = ('--eval-data', tmp_path / 'test.csv', '--epochs', 3, '--limit', 7)
    code, out, err = finetuner('fit', tmp_path / 'train.csv', *arguments)
    assert code == 0
    assert 'is in the queue' in out and 'has finished' in out and '+0.2500' in out
    assert err == 'Next: finetuner pull brisk-heron\n'
    (sent,) = training.parameters('/fit')
    assert sent['model'] == 'all-minilm-l6-v2' and sent['epochs'] == 3
    (callback,) = sent['callbacks']
    assert callback['options']['limit'] == 7 and callback['options']['gather_examples']
    assert callback['options']['index_data'] == sent['train_data'] != callback['options']['query_data']


def test_fit_has_options_for_what_matters_and_one_for_the_rest(training, finetuner):
    values = {
        'val-split': 0.1, 'batch-size': 32, 'learning-rate': 1e-4, 'loss': 'ArcFaceLoss',
        'miner': 'MultiSimilarityMiner', 'output-dim': 64, 'model-artifact': 'f' * 24, 'time-limit': 60.0,
        'seed': 3, 'device': 'cpu',
    }  # fmt: skip
    given = [part for name, value in values.items() for part in (f'--{name}', value)]
    further = {
        'precision': 'bf16',
        'lora': {'r': 4},
        'callbacks': [{'name': 'EarlyStopping', 'options': {'patience': 1}}],
    }
    given += ['--loss-options', '{"margin": 20}', '--miner-options', '{"epsilon": 0.2}', '--freeze']
    assert finetuner('fit', 'my-data', *given, '--options', json.dumps(further), '--detach')[0] == 0
    (sent,) = training.parameters('/fit')
    assert {name: sent[name.replace('-', '_')] for name in values} == values
    assert (
        sent['loss_options'] == {'margin': 20} and sent['miner_options'] == {'epsilon': 0.2} and sent['freeze'] is True
    )
    assert sent['precision'] == 'bf16' and sent['lora'] == {'r': 4} and sent['callbacks'] == further['callbacks']


@pytest.mark.parametrize(
    ('given', 'sent'), [([], False), (['--freeze'], True), (['--freeze', 'all'], True), (['--freeze', '3'], 3)]
)
def test_freeze_takes_how_many_layers_or_nothing(training, finetuner, given, sent):
    assert finetuner('fit', *given, 'my-data', '--detach')[0] == 0
    assert training.parameters('/fit')[-1]['freeze'] == sent


def test_freeze_takes_nothing_else(training, finetuner):
    code, _, err = finetuner('fit', 'my-data', '--freeze=some', '--detach')
    assert code == 1 and "--freeze some: give 'all', or how many groups of layers" in err


def test_csv_options_are_json(training, finetuner, tmp_path):
    (tmp_path / 'train.csv').write_text('a,x\nb,x\nc,x\n')
    rows = []
    training.endpoints['/ingest'] = lambda parameters, documents: rows.append(len(documents)) or {'rows': rows[-1]}
    assert finetuner('fit', tmp_path / 'train.csv', '--csv-options', '{"size": 2}', '--detach')[0] == 0
    assert rows[0] == 2
    code, _, err = finetuner('fit', tmp_path / 'train.csv', '--csv-options', '{"sice": 2}', '--detach')
    assert code == 1 and "'sice' is unknown: choose of size, sampling_rate" in err


def test_further_callbacks_come_after_the_evaluation_of_the_held_out_data(training, finetuner):
    further = {'callbacks': [{'name': 'BestModelCheckpoint', 'options': {'monitor': 'hit_at_k'}}]}
    given = ('--eval-data', 'my-test', '--options', json.dumps(further), '--detach')
    assert finetuner('fit', 'my-data', *given)[0] == 0
    assert finetuner('fit', 'my-data', '--eval-data', 'my-test', '--detach')[0] == 0
    first, second = training.parameters('/fit')
    assert [callback['name'] for callback in first['callbacks']] == ['EvaluationCallback', 'BestModelCheckpoint']
    assert first['eval_data'] == second['eval_data'] == 'my-test'
    assert 'callbacks' not in second  # the service evaluates by itself


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('{', '--options is not JSON'),
        ('[1]', '--options is not a JSON object'),
        ('{"epochs": 3}', '--options: epochs has an option of its own: give --epochs$'),
        ('{"freeze": true}', '--options: freeze has an option of its own: give --freeze$'),
        ('{"experiment_name": "x"}', '--options: experiment_name has an option of its own: give --experiment$'),
        ('{"train_data": "x"}', '--options: train_data has an option of its own: give it as the first argument$'),
        ('{"epoch": 3}', "--options: 'epoch' is no argument of finetuner.fit"),
    ],
)
def test_what_is_wrong_in_further_options_is_told(training, finetuner, options, message):
    code, _, err = finetuner('fit', 'my-data', '--options', options)
    assert code == 1 and re.match(message, err)


def test_what_came_of_a_task_has_no_other_k_and_leads_on_to_its_model(training, finetuner, run_record):
    training.endpoints['/status'] = run_record('FINISHED', config={'model': 'x', 'tuning_task': 'a'})
    figures = {'ndcg_at_10': 0.5, 'reciprocal_rank': 0.4}
    training.endpoints['/metrics'] = lambda *_: {'before': figures, 'after': figures, 'promoted': False}
    training.endpoints['/examples'] = lambda *_: {}
    code, out, err = finetuner('metrics', 'task-a', '--experiment', 'fine-tuning')
    assert code == 0 and 'ndcg_at_10' in out and '20' not in out and ' k ' not in out
    assert err == 'Next: finetuner pull task-a --experiment fine-tuning\n'
    code, out, _ = finetuner('examples', 'task-a', '--experiment', 'fine-tuning')
    assert code == 0 and 'a task keeps none' in out


@pytest.mark.parametrize(
    ('status', 'told', 'following'),
    [('CANCELLED', 'is cancelled', 'resume'), ('FINISHED', 'is finished already', 'metrics')],
)
def test_cancel(training, finetuner, run_record, status, told, following):
    training.endpoints['/cancel'] = run_record(status)
    code, out, err = finetuner('cancel', 'brisk-heron')
    assert code == 0 and f'Run brisk-heron {told}.' in out
    assert err == f'Next: finetuner {following} brisk-heron\n'
    assert training.parameters('/cancel') == [{'experiment_name': 'default', 'run_name': 'brisk-heron'}]


def test_resume(training, finetuner, run_record):
    training.endpoints['/resume'] = run_record('CREATED')
    code, out, err = finetuner('resume', 'brisk-heron')
    assert code == 0 and 'is in the queue' in out
    assert err == 'Next: finetuner logs brisk-heron --follow\n'


def test_fit_can_return_at_once(training, finetuner):
    code, out, err = finetuner('fit', 'my-data', '--detach', '--experiment', 'pets')
    assert code == 0 and 'has finished' not in out
    assert err == 'Next: finetuner logs brisk-heron --experiment pets --follow\n'


def test_a_failed_run_is_an_error_with_its_reason(training, finetuner, run_record):
    training.endpoints['/status'] = run_record('FAILED', details='no labels')
    code, _, err = finetuner('fit', 'my-data', '--name', 'x')
    assert code == 1
    assert err == (
        'The run failed, please check the `logs` for detailed information. brisk-heron: no labels\n'
        'Next: finetuner logs brisk-heron\n'
    )


def test_ctrl_c_leaves_the_run_at_work(training, finetuner, monkeypatch):
    def interrupted(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, 'wait', interrupted)
    code, _, err = finetuner('fit', 'my-data')
    assert code == 130
    assert err == 'The run goes on without you.\nNext: finetuner logs brisk-heron --follow\n'


def test_runs_are_a_table(training, finetuner):
    code, out, err = finetuner('runs')
    assert code == 0 and 'brisk-heron' in out and 'FINISHED' in out
    assert err == 'Next: finetuner status brisk-heron\n'
    training.endpoints['/runs'] = lambda *_: {'items': []}
    assert finetuner('runs')[1] == 'There are no runs.\n'


def test_experiments_are_a_table(training, finetuner):
    record = {'name': 'support', 'status': 'ACTIVE', 'description': 'Mail', 'created_at': '2026-01-01', 'runs': 3.0}
    training.endpoints['/experiments'] = lambda *_: {'items': [record]}
    code, out, err = finetuner('experiments')
    assert code == 0 and re.search(r'support\W+3\W+2026-01-01.*Mail', out)
    assert err == 'Next: finetuner runs --experiment support\n'
    training.endpoints['/experiments'] = lambda *_: {'items': []}
    assert finetuner('experiments')[1] == 'There are no experiments.\n'


def test_what_is_deleted_is_asked_about(training, finetuner, monkeypatch):
    deleted = []
    training.endpoints['/delete_run'] = lambda parameters, _: deleted.append(parameters['run_name']) or {'name': 'x'}
    training.endpoints['/experiment'] = lambda *_: {'name': 'support', 'runs': 3}
    training.endpoints['/delete_experiments'] = lambda parameters, _: (
        deleted.append(parameters['names']) or {'items': [{'name': 'support', 'runs': 1}]}
    )
    give_stdin(monkeypatch, 'n\n')
    code, _, err = finetuner('delete', 'one', 'two')
    assert code == 1 and 'Delete one, two for good?' in err and deleted == []
    give_stdin(monkeypatch, 'y\n')
    code, out, _ = finetuner('delete', 'one', 'two')
    assert code == 0 and out.strip() == 'Deleted one, two.' and deleted == ['one', 'two']
    code, out, _ = finetuner('delete', '--experiment', 'support', '--yes')
    assert code == 0 and out == 'Deleted the experiment support with all its runs (3).\n' and deleted[2] == ['support']
    code, _, err = finetuner('delete')
    assert code == 1 and err.startswith('Give the names of runs, or --experiment')


@pytest.mark.parametrize(
    ('status', 'following'),
    [('STARTED', 'logs brisk-heron --follow'), ('FINISHED', 'metrics brisk-heron'), ('FAILED', 'logs brisk-heron')],
)
def test_status_names_what_to_look_at(training, finetuner, run_record, status, following):
    progress = {'stage': 'Training', 'step': 1, 'steps': 2, 'epoch': 1, 'epochs': 5, 'loss': 0.5}
    training.endpoints['/status'] = run_record(status, progress=progress)
    code, out, err = finetuner('status', 'brisk-heron')
    assert code == 0 and status in out and ('epoch 1/5' in ' '.join(out.split())) == (status == 'STARTED')
    assert err == f'Next: finetuner {following}\n'


def test_errors_are_one_sentence_unless_asked_for_more(training, finetuner):
    code, out, err = finetuner('status', 'no-such')
    assert (code, out, err) == (1, '', 'There is no run no-such\n')
    with pytest.raises(RegistryError):
        app(['status', 'no-such', '--debug'])


def test_unknown_options_are_told_by_typer(finetuner):
    code, _, err = finetuner('fit', 'x', '--epoch', '3')
    assert code == 2 and '--epochs' in err


@pytest.fixture
def encoder(service):
    def encode(parameters, documents):
        [document] = documents
        rows = np.array([[len(text), 1] for text in json.loads(document.text)], '<f4')
        tags = {'count': len(rows), 'dim': 2, 'dtype': 'float32', 'tokens': 0, 'model': 'm'}
        return [Document(blob=rows.tobytes(), tags=tags)]

    service.endpoints['/encode_texts'] = encode


def test_encode_previews(encoder, finetuner):
    code, out, err = finetuner('encode', 'one', '[bold]three[/]')
    assert code == 0
    assert '2 × 2 float32' in out and '[bold]three[/]' in out and '+3.000 +1.000' in out
    assert err.startswith('Next: finetuner encode')


def test_encode_says_on_stderr_that_it_waits(encoder, finetuner, monkeypatch):
    monkeypatch.setattr('finetuner.client.encode_client.PATIENCE', 0.7)
    monkeypatch.setattr(logging.getLogger(), 'handlers', [])  # pytest's own
    monkeypatch.setenv('FINETUNER_HOST', 'grpc://localhost:9')
    code, out, err = finetuner('encode', 'one')
    assert (code, out) == (1, '')
    assert err.startswith('grpc://localhost:9 cannot be reached yet: trying for 0.7 s\nNo service answers at')


def test_encode_writes_files(encoder, finetuner, tmp_path, monkeypatch):
    (tmp_path / 'texts').write_text('one\n\nthree\n')
    code, out, _ = finetuner('encode', '--file', tmp_path / 'texts', '-o', tmp_path / 'x.npy')
    assert code == 0 and '2 embeddings of 2 dimensions' in out.replace('\n', ' ')
    np.testing.assert_array_equal(np.load(tmp_path / 'x.npy'), [[3, 1], [5, 1]])
    finetuner('encode', 'one', '-o', tmp_path / 'x.jsonl')
    assert json.loads((tmp_path / 'x.jsonl').read_text()) == {'text': 'one', 'embedding': [3.0, 1.0]}
    give_stdin(monkeypatch, 'ä\r\na\u2028b\x0cc\rd\n\n')
    lines = [json.loads(line) for line in finetuner('encode', '--file', '-', '-o', '-')[1].splitlines()]
    assert lines == [{'text': 'ä', 'embedding': [1.0, 1.0]}, {'text': 'a\u2028b\x0cc\rd', 'embedding': [7.0, 1.0]}]
    (tmp_path / 'texts').write_bytes(b'one\r\ntwo\x0cthree\rfour\n')
    finetuner('encode', '--file', tmp_path / 'texts', '-o', tmp_path / 'y.jsonl')
    texts = [json.loads(line)['text'] for line in (tmp_path / 'y.jsonl').read_text().splitlines()]
    assert texts == ['one', 'two\x0cthree\rfour']


def test_serve_says_what_is_missing(finetuner, tmp_path, monkeypatch):
    code, _, err = finetuner('serve', tmp_path / 'nowhere.zip')
    assert code == 1 and 'nowhere.zip' in err and len(err.splitlines()) == 1
    with socket.socket() as taken:
        taken.bind(('0.0.0.0', 0))
        taken.listen()
        code, _, err = finetuner('serve', '--port', taken.getsockname()[1])
    assert code == 1 and 'cannot be used (Address already in use): perhaps a service of yours' in err
    assert 'choose another with --port' in err
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None if name == 'jina' else real(name, *rest))
    code, _, err = finetuner('serve', '--port', 0, '--http-port', 0)
    assert code == 1 and "pip install 'finetuner[server]'" in err


def test_without_a_service_the_remedy_is_told(finetuner, monkeypatch):
    monkeypatch.setattr(session, '_current', None)
    monkeypatch.setenv('FINETUNER_TOKEN', 'x')
    monkeypatch.setenv('FINETUNER_HOST', 'grpc://localhost:1')
    code, _, err = finetuner('runs')
    assert code == 1 and err.startswith('No service answers at grpc://localhost:1: start one with `finetuner serve`')
