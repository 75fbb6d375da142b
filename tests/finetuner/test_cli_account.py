"""The commands around runs: account, tokens, data sets, artifacts, aliases; and what is told of the queue."""

from __future__ import annotations

import io
import re

import pytest

from finetuner import settings
from finetuner.cli import app, cli
from finetuner.console import console
from finetuner.documents import Document

TIME = '2026-01-02T03:04:05+00:00'
ID = '0123456789abcdef01234567'
TOKEN = {'id': 't1', 'name': 'laptop', 'created_at': TIME, 'expires_at': None}
PROMOTION = {'alias': 'support@production', 'artifact_id': ID, 'number': 2, 'previous': None, 'created_at': TIME}


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


def items(*records):
    return lambda *_: {'items': list(records), 'total': len(records)}


@pytest.mark.parametrize('command', sorted(info.name or info.callback.__name__ for info in cli.registered_commands))
def test_every_command_has_help(finetuner, command):
    code, out, _ = finetuner(command.replace('_', '-'), '--help')
    assert code == 0 and 'Usage: ' in out


def test_whoami_and_usage(service, finetuner):
    assert finetuner('whoami') == (0, f'local at {service.host}\n', 'Next: finetuner usage\n')
    amount = {'count': 1234, 'bytes': 5e9}
    service.endpoints['/usage'] = lambda *_: {
        'account': 'local', 'datasets': amount, 'artifacts': amount, 'checkpoints': {'count': 0, 'bytes': 0},
        'runs': {'waiting': 3, 'at_work': 1, 'total': 9}, 'max_bytes': 2e10, 'max_runs': 2,
        'search_items': {'count': 77, 'bytes': 3e8}, 'max_search_bytes': 1e9,
    }  # fmt: skip
    code, out, err = finetuner('usage')
    assert code == 0 and '1,234' in out and '10.0 GB of 20.0 GB' in out and '1 of 2' in out
    assert '77' in out and '300.0 MB of 1.0 GB' in out
    assert err == 'Next: finetuner datasets\n'


def test_tokens(service, finetuner, monkeypatch):
    past = '2026-01-03T03:04:05+00:00'
    service.endpoints['/tokens'] = items(
        {**TOKEN, 'revoked_at': None}, {**TOKEN, 'name': 'old', 'expires_at': past}, {**TOKEN, 'revoked_at': TIME}
    )
    code, out, err = finetuner('tokens')
    assert code == 0 and 'for ever' in out and 'expired 2026-01-03' in out and 'revoked 2026-01-02' in out
    assert err.startswith('Next: finetuner create-token ')

    service.endpoints['/create_token'] = lambda *_: {**TOKEN, 'token': 'the-secret'}
    code, out, err = finetuner('create-token', 'laptop', '--days', 30)
    assert (code, out) == (0, 'the-secret\n'), 'so that a script can take it'
    assert err == f'Next: finetuner login --host {service.host} --token -\n'
    assert service.parameters('/create_token') == [{'name': 'laptop', 'days': 30}]

    service.endpoints['/revoke_token'] = lambda *_: {**TOKEN, 'revoked_at': TIME}
    give_stdin(monkeypatch, 'n\n')
    assert finetuner('revoke-token', 't1')[0] == 1 and not service.parameters('/revoke_token')
    assert finetuner('revoke-token', 't1', '--yes') == (0, 'Revoked the token laptop.\n', 'Next: finetuner tokens\n')


def test_datasets(service, finetuner):
    record = {
        'name': 'fruits', 'rows': 32, 'size': 3e6, 'digest': 'd', 'shape': 'single', 'modalities': ['text'],
        'labelled': True, 'scored': False, 'created_at': TIME,
    }  # fmt: skip
    service.endpoints['/datasets'] = items(record)
    code, out, err = finetuner('datasets')
    assert code == 0 and re.search(r'fruits\W+32\W+3.0 MB.*single: text, labels', out)
    assert err == 'Next: finetuner fit fruits\n'
    service.endpoints['/datasets'] = items()
    assert finetuner('datasets')[1] == 'There are no data sets.\n'
    service.endpoints['/delete_dataset'] = lambda *_: record
    code, out, err = finetuner('delete-dataset', 'fruits', 'fruits-2', '--yes')
    assert (code, out, err) == (0, 'Deleted fruits (32 rows).\n' * 2, 'Next: finetuner datasets\n')
    assert [sent['name'] for sent in service.parameters('/delete_dataset')] == ['fruits', 'fruits-2']


def test_artifacts_and_aliases(service, finetuner, monkeypatch):
    monkeypatch.setattr(console, 'width', 200)
    artifact = {
        'id': ID, 'name': 'r', 'experiment_name': 'support', 'run_name': 'first', 'size': 9e7, 'sha256': 's',
        'public': False, 'created_at': TIME, 'aliases': ['support@production'],
    }  # fmt: skip
    service.endpoints['/artifacts'] = items(artifact)
    code, out, err = finetuner('artifacts')
    assert code == 0 and ID in out and 'support/first' in out
    assert err == 'Next: finetuner promote support/first my-model@production\n'
    alias = {'alias': 'support@production', 'artifact_id': ID, 'number': 2, 'created_at': TIME}
    service.endpoints['/aliases'] = items({**alias, 'experiment_name': 'support', 'run_name': 'first'})
    code, out, err = finetuner('aliases')
    assert code == 0 and 'support/first' in out and err == 'Next: finetuner serve support@production\n'
    service.endpoints['/aliases'] = items()
    assert finetuner('aliases')[1:] == ('There are no aliases.\n', 'Next: finetuner artifacts\n')


@pytest.mark.parametrize(
    ('given', 'sent'),
    [
        (('first',), 'default/first'),
        (('first', '--experiment', 'support'), 'support/first'),
        (('support/first',), 'support/first'),
        ((ID,), ID),
        (('support@staging',), 'support@staging'),
    ],
)
def test_promote(service, finetuner, given, sent):
    service.endpoints['/promote'] = lambda *_: PROMOTION
    name, *options = given
    code, out, err = finetuner('promote', name, 'support@production', *options)
    assert (code, out) == (0, f'support@production is now {ID}.\n')
    assert err == 'Next: finetuner serve support@production\n'
    assert service.parameters('/promote') == [{'alias': 'support@production', 'artifact': sent}]


def test_rollback(service, finetuner):
    service.endpoints['/promote'] = lambda *_: {**PROMOTION, 'previous': 'f' * 24}
    _, out, err = finetuner('promote', 'first', 'support@production')
    assert 'f' * 24 + ' before' in out and err == 'Next: finetuner rollback support@production\n'
    service.endpoints['/rollback'] = lambda *_: PROMOTION
    code, out, err = finetuner('rollback', 'support@production')
    assert (code, out, err) == (0, f'support@production is {ID} again.\n', 'Next: finetuner aliases\n')
    service.endpoints['/delete_alias'] = lambda *_: PROMOTION
    code, out, _ = finetuner('delete-alias', 'support@production', '--yes')
    assert (code, out) == (0, f'Deleted support@production, which named {ID}.\n')


def test_fit_says_how_a_run_is_scheduled(service, finetuner, run_record):
    service.endpoints.update({'/fit': run_record('CREATED'), '/runs': items()})
    options = ('--priority', 5, '--cpus', 2, '--gpus', 1, '--memory-limit', 10**10, '--max-retries', 0)
    assert finetuner('fit', 'my-data', '--detach', *options)[0] == 0
    (sent,) = service.parameters('/fit')
    wanted = {'priority': 5, 'cpus': 2, 'gpus': 1, 'memory_limit': 10**10, 'max_retries': 0}
    assert {name: sent[name] for name in wanted} == wanted


def test_runs_tell_of_the_queue_and_of_attempts(service, finetuner, run_record, monkeypatch):
    monkeypatch.setattr(console, 'width', 200)
    progress = {'stage': 'Training', 'step': 1, 'steps': 2, 'epoch': 1, 'epochs': 5, 'loss': 0.5}
    service.endpoints['/runs'] = items(
        run_record('CREATED', queue_position=2, attempts=0)(None, None),
        run_record('STARTED', progress=progress, attempts=3)(None, None),
        run_record('FINISHED', attempts=2, queue_position=None)(None, None),
    )
    code, out, _ = finetuner('runs')
    shown = ' '.join(out.split())
    assert code == 0 and 'place 2 in the queue' in shown
    assert 'Training epoch 1/5 · loss 0.5000 · attempt 3' in shown and 'attempt 2' not in shown


@pytest.mark.parametrize(
    ('status', 'progress', 'following'),
    [
        ('FINISHED', {}, 'metrics brisk-heron'),
        ('FAILED', {'stage': 'Training', 'step': 4, 'steps': 9}, 'resume brisk-heron'),
        ('FAILED', {'stage': 'Preparing', 'step': 0, 'steps': 0}, 'fit --help'),
        ('STARTED', {}, 'logs brisk-heron --follow'),
    ],
)
def test_logs_end_with_what_makes_sense(service, finetuner, run_record, status, progress, following):
    def logs(parameters, documents):
        text = '' if parameters['offset'] else 'the log\n'
        return [Document(text=text, tags={'offset': 8, 'status': status})]

    service.endpoints.update({'/status': run_record(status, progress=progress), '/logs': logs})
    assert finetuner('logs', 'brisk-heron') == (0, 'the log\n', f'Next: finetuner {following}\n')


def test_logout(service, finetuner, monkeypatch):
    token = settings.load_token()
    monkeypatch.delenv('FINETUNER_TOKEN')
    settings.save_token(token)
    assert finetuner('logout') == (0, f'Logged out of {service.host}.\n', 'Next: finetuner login\n')
    code, _, err = finetuner('whoami')
    assert code == 1 and err.startswith('There is no token for grpc://localhost')
