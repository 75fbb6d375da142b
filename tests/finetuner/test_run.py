from __future__ import annotations

import hashlib
import re

import pytest

import finetuner
from finetuner import progress
from finetuner.client.names import dataset_name
from finetuner.documents import Document
from finetuner.excepts import (
    ArtifactError,
    FinetunerServerError,
    RunFailedError,
    RunInProgressError,
    RunPreparingError,
)
from finetuner.progress import describe_progress

METRICS = {'before': {'hit_at_k': 0.5, 'recall_at_k': 0.25}, 'after': {'hit_at_k': 0.75, 'recall_at_k': 0.25}}
FAILED = '^The run failed, please check the `logs` for detailed information. brisk-heron: the loss is not a number$'
EXAMPLES = {'before': {'[red]q[/]': ['a', 'b', 'c']}, 'after': {'[red]q[/]': ['b', 'c', 'a']}}


@pytest.fixture
def get_run(service, run_record):
    def get(*statuses, **fields):
        service.endpoints['/status'] = run_record(*statuses, **fields)
        return finetuner.get_run('brisk-heron')

    return get


def test_a_run_tells_what_it_is(get_run):
    run = get_run('CREATED', 'STARTED', details='Training')
    assert (run.name, run.experiment_name, run.config) == ('brisk-heron', 'default', {'epochs': 3})
    assert run.status() == {'status': 'STARTED', 'details': 'Training'}
    assert 'brisk-heron' in repr(run) and 'token' not in repr(run)


@pytest.mark.parametrize('status', ['CREATED', 'STARTED'])
def test_results_need_a_finished_run(get_run, status, tmp_path):
    run = get_run(status)
    for result in (
        run.metrics,
        run.display_metrics,
        run.example_results,
        run.display_examples,
        lambda: run.save_artifact(tmp_path),
        lambda: run.artifact_id,
    ):
        with pytest.raises(
            RunInProgressError, match=f'^The run needs to be finished in order to .*brisk-heron is {status}'
        ):
            result()


def test_results_of_a_failed_run_tell_why_there_are_none(get_run, tmp_path):
    run = get_run('FAILED', details='the loss is not a number.')
    for result in (
        run.metrics,
        run.example_results,
        run.wait,
        lambda: run.save_artifact(tmp_path),
        lambda: run.artifact_id,
    ):
        with pytest.raises(RunFailedError, match=FAILED):
            result()


def test_artifact_id_is_there_once_the_run_has_finished(get_run):
    assert get_run('STARTED', 'FINISHED').artifact_id == '0123456789abcdef01234567'


def test_metrics_and_examples(get_run, service, capsys):
    service.endpoints['/metrics'] = lambda *_: METRICS
    service.endpoints['/examples'] = lambda *_: EXAMPLES
    run = get_run('FINISHED')
    assert run.metrics() == METRICS
    assert run.example_results() == EXAMPLES
    run.display_metrics()
    run.display_examples(k=2)
    shown = capsys.readouterr().out
    assert 'hit_at_k' in shown and '0.5000' in shown and '+0.2500' in shown
    assert '[red]q[/]' in shown and '1. b' in shown and '2. c' in shown and '3.' not in shown
    assert '✓' not in shown and '✗' not in shown  # it is not known which are right


def test_right_and_wrong_matches_are_marked(get_run, service, capsys):
    relevance = {
        'relevant before': {'[red]q[/]': [0.0, 1.0, 0.0]},
        'relevant after': {'[red]q[/]': [True, False, True]},
    }
    service.endpoints['/examples'] = lambda *_: EXAMPLES | relevance
    run = get_run('FINISHED')
    assert run.example_results() == EXAMPLES
    run.display_examples(k=3)
    shown = capsys.readouterr().out
    for line in ('✗ 1. a', '✓ 2. b', '✗ 3. c', '✓ 1. b', '✗ 2. c', '✓ 3. a'):
        assert line in shown


def test_nothing_to_show_is_told(get_run, service, capsys):
    service.endpoints['/metrics'] = service.endpoints['/examples'] = lambda *_: {'before': {}, 'after': {}}
    run = get_run('FINISHED')
    run.display_metrics()
    run.display_examples()
    shown = ' '.join(capsys.readouterr().out.split())
    assert 'brisk-heron evaluated nothing: give fit eval_data, or an EvaluationCallback' in shown
    assert 'brisk-heron kept no examples: give fit EvaluationCallback(gather_examples=True)' in shown
    assert 'Metric' not in shown


def test_tables_of_metrics_tell_k_and_keep_evaluations_apart(get_run, service, capsys):
    names = ['recall_at_k', 'precision_at_k', 'toys_ndcg_at_k', 'toys_precision_at_k', 'evaluation-3_dcg_at_k']
    service.endpoints['/metrics'] = lambda *_: {stage: dict.fromkeys(names, 0.5) for stage in ('before', 'after')}
    options = [{'limit': 7}, {'limit': 5.0, 'name': 'toys'}, {'limit': 9}]
    callbacks = [{'name': 'EvaluationCallback', 'options': {'query_data': 'q', **given}} for given in options]
    get_run('FINISHED', config={'callbacks': callbacks}).display_metrics()
    rows = [re.findall(r'[\w.-]+', line)[:2] for line in capsys.readouterr().out.splitlines() if '0.5' in line]
    assert rows == [
        ['precision_at_k', '7'], ['recall_at_k', '7'], ['evaluation-3_dcg_at_k', '9'],
        ['toys_precision_at_k', '5'], ['toys_ndcg_at_k', '5'],
    ]  # fmt: skip
    get_run('FINISHED', config={'eval_data': 'e', 'callbacks': None}).display_metrics()
    assert ' 20 ' in capsys.readouterr().out


def test_cancel_and_resume(get_run, service, run_record):
    run = get_run('STARTED')
    service.endpoints['/cancel'] = run_record('CANCELLED', details='Cancelled by the account')
    assert run.cancel() == {'status': 'CANCELLED', 'details': 'Cancelled by the account'}
    for result in (run.metrics, run.wait, lambda: run.artifact_id):
        service.endpoints['/status'] = run_record('CANCELLED', details='Cancelled by the account')
        with pytest.raises(
            RunFailedError, match=r'was cancelled. brisk-heron: Cancelled by the account. Its resume\(\) goes on'
        ):
            result()
    service.endpoints['/resume'] = run_record('CREATED')
    assert run.resume() is run and run.record['status'] == 'CREATED'
    for endpoint in ('/cancel', '/resume'):
        assert service.parameters(endpoint) == [{'experiment_name': 'default', 'run_name': 'brisk-heron'}]


def test_logs_are_read_to_their_end(get_run, service):
    log = ['first\n', 'second\n', '']

    def logs(parameters, documents):
        offset = int(parameters['offset'])
        return [Document(text=log[offset], tags={'offset': min(offset + 1, 2), 'status': 'STARTED'})]

    service.endpoints['/logs'] = logs
    assert get_run('STARTED').logs() == 'first\nsecond\n'
    assert get_run('CREATED').logs() == 'first\nsecond\n', 'what an attempt before has told'
    log[:] = ['']
    with pytest.raises(RunPreparingError, match='waits for its start: there are no logs yet'):
        get_run('CREATED').logs()


def test_log_stream_survives_breaks_and_repetitions(get_run, service):
    log = 'abcdef'
    waits = iter([1, 2, 3])

    def stream(parameters, documents):
        offset = int(parameters['offset'])
        for start in (offset, offset + 1, offset):  # as a gateway does that begins a broken stream anew
            yield Document(text=log[start], tags={'offset': start + 1, 'status': 'STARTED'})
        if next(waits, None):
            raise RuntimeError('the stream broke')

    def logs(parameters, documents):
        offset = int(parameters['offset'])
        end = len(log) if offset >= 4 else offset
        return [
            Document(text=log[offset:end], tags={'offset': end, 'status': 'FINISHED' if offset >= 4 else 'STARTED'})
        ]

    service.endpoints.update({'/logstream': stream, '/logs': logs})
    pieces = list(get_run('CREATED', 'CREATED', 'STARTED').stream_logs(interval=0.01))
    assert ''.join(pieces) == log


def test_wait_returns_the_finished_run(get_run):
    told = {'stage': 'Training', 'step': 3, 'steps': 9, 'epoch': 1, 'epochs': 3, 'loss': 0.5, 'eta': 62.4}
    run = get_run('CREATED', 'STARTED', 'STARTED', 'FINISHED', progress=told)
    assert run.wait(interval=0.01) is run
    assert run.record['status'] == 'FINISHED'


def test_wait_gives_up_in_time(get_run):
    run = get_run('STARTED')
    with pytest.raises(
        TimeoutError, match=r'brisk-heron has not ended within 0.05 seconds. It goes on: wait\(\) again'
    ):
        run.wait(interval=60, timeout=0.05)
    assert get_run('FINISHED').wait(timeout=0).name == 'brisk-heron'


def test_the_bar_shows_all_that_is_known(get_run, monkeypatch):
    from io import StringIO

    from rich.console import Console

    shown = StringIO()
    terminal = Console(file=shown, force_terminal=True, width=160)
    monkeypatch.setattr(finetuner.console, 'progress_console', terminal)
    told = {'stage': 'Training', 'step': 3, 'steps': 9, 'epoch': 2, 'epochs': 5, 'loss': 0.5, 'eta': 62.4}
    told['samples_per_second'] = 310
    records = iter(
        [
            {'status': 'CREATED', 'details': 'waits', 'queue_position': 2, 'attempts': 0},
            {'status': 'STARTED', 'progress': told, 'attempts': 2},
            {'status': 'FINISHED'},
        ]
    )
    run = get_run('CREATED')
    monkeypatch.setattr(type(run), 'refresh', lambda self: self._record.update(next(records)) or self._record)
    run.wait(interval=0.3)
    text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', shown.getvalue())
    assert 'brisk-heron: waits' in text and 'place 2 in the queue' in text
    assert 'Training epoch 2/5' in text and '3/9' in text
    assert 'loss 0.5000 · 310 samples/s · 1:02 left · attempt 2' in text


def test_wait_bears_a_service_that_does_not_answer_for_a_while(get_run, service, run_record, monkeypatch):
    run = get_run('STARTED')
    finished = run_record('FINISHED')
    silent = iter([True, True])

    def status(*arguments):
        if next(silent, False):
            raise FinetunerServerError('away')
        return finished(*arguments)

    service.endpoints['/status'] = status
    run.wait(interval=0.01)

    monkeypatch.setattr(progress, 'PATIENCE', 0.05)
    service.endpoints['/status'] = lambda *_: 1 / 0
    with pytest.raises(FinetunerServerError, match='division by zero'):
        run.wait(interval=0.02)


def test_progress_in_words():
    told = {'stage': 'Training', 'step': 3, 'steps': 9, 'epoch': 2.0, 'epochs': 5.0, 'loss': 0.1234}
    told |= {'samples_per_second': 310.4, 'eta': 62}
    record = {'name': 'r', 'experiment_name': 'e', 'status': 'STARTED', 'details': '', 'progress': told}
    assert describe_progress(record) == ('Training epoch 2/5', 'loss 0.1234 · 310 samples/s · 1:02 left')
    told = {'stage': 'Embedding finetuner-dastorage-e-r-train', 'step': 9, 'steps': 9, 'eta': 0}
    assert describe_progress({**record, 'progress': told}) == ('Embedding train', '')
    told['stage'] = f'Embedding {dataset_name("an-experiment", "r", "query")}'
    record['experiment_name'] = 'an-experiment'
    assert describe_progress({**record, 'progress': told}) == ('Embedding query', '')
    assert describe_progress({'status': 'CREATED', 'details': 'waits', 'progress': {}}) == ('waits', '')


class Store:
    """The /artifact endpoint, in small pieces."""

    def __init__(self, data, sha256=None, size=None):
        self.data = data
        self.sha256 = sha256 or hashlib.sha256(data).hexdigest()
        self.size = len(data) if size is None else size

    def __call__(self, parameters, documents):
        offset = int(parameters['offset'])
        tags = {'size': float(self.size), 'sha256': self.sha256, 'offset': offset}
        return [Document(blob=self.data[offset : offset + 7], tags=tags)]


def test_save_artifact(get_run, service, tmp_path):
    data = bytes(range(100))
    service.endpoints['/artifact'] = Store(data)
    path = get_run('FINISHED').save_artifact(str(tmp_path / 'new' / 'folder'))
    assert path == str(tmp_path / 'new' / 'folder' / 'brisk-heron.zip')
    assert (tmp_path / 'new' / 'folder' / 'brisk-heron.zip').read_bytes() == data

    by_id = finetuner.client.download_artifact('0123', tmp_path)
    assert by_id == tmp_path / '0123.zip' and by_id.read_bytes() == data


@pytest.mark.parametrize(
    ('store', 'message'),
    [(Store(b'x' * 20, sha256='0' * 64), 'arrived damaged'), (Store(b'x' * 20, size=30), 'broke off after 20 of 30')],
)
def test_damaged_downloads_leave_nothing_behind(get_run, service, tmp_path, store, message):
    (tmp_path / 'brisk-heron.zip').write_text('the former one')
    service.endpoints['/artifact'] = store
    with pytest.raises(ArtifactError, match=message):
        get_run('FINISHED').save_artifact(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if 'heron' in path.name] == ['brisk-heron.zip']
    assert (tmp_path / 'brisk-heron.zip').read_text() == 'the former one'
