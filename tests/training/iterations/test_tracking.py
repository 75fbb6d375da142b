"""Iterations as MLflow has them: in the store that is there without a server, and on a server by HTTP."""

import json
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import Engine, event

from finetuner import settings
from registry import Registry
from tests.training.iterations.mlflow_server import TrackingServer
from training.callbacks.training_checkpoint import Recovery
from training.errors import is_passing, passing_reason
from training.iterations.parameters import name_of
from training.iterations.tidying import remove_lost
from training.iterations.tracking import FINISHED, PROMOTED, PRUNED, REFUSED, Tracker
from training.iterations.training import Start, Work, set_up, training_folder
from training.methods.method import Method, Search

SPACE = Search.model_validate({'space': {'learning_rate': {'low': 1e-6, 'high': 1e-3}, 'freeze': [0, 2]}}).space
FIRST, SECOND, THIRD = ({'learning_rate': rate, 'freeze': 2} for rate in (1e-5, 2e-5, 3e-5))


@pytest.fixture(scope='module')
def server(tmp_path_factory, empty_mlflow):
    made = TrackingServer(tmp_path_factory.mktemp('server'), empty_mlflow)
    with made.running():
        yield made


@pytest.fixture
def local(empty_mlflow):
    """In the store that is there without a server."""
    home = settings.home()
    home.mkdir(parents=True)
    shutil.copyfile(empty_mlflow, home / 'mlflow.db')
    return Tracker()


@pytest.fixture(params=['store', pytest.param('server', marks=pytest.mark.slow)])
def tracker(request, monkeypatch):
    if request.param == 'store':
        return request.getfixturevalue('local')
    server = request.getfixturevalue('server')
    server.empty()
    settings.home().mkdir(parents=True)
    (settings.home() / 'mlflow').symlink_to(server.artifacts)
    monkeypatch.setenv('MLFLOW_TRACKING_URI', server.url)
    return Tracker()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / 'model.zip'
    path.write_bytes(b'weights')
    return path


def kept_files():
    return sorted(path.relative_to(settings.home() / 'mlflow').as_posix() for path in
                  (settings.home() / 'mlflow').rglob('*') if path.is_file())  # fmt: skip


def learn(iteration, values, quality, path=None, outcome=FINISHED):
    run_id = iteration.start(values)
    iteration.log(run_id, {'test_ndcg_at_10': quality / 2}, 1)
    iteration.log(run_id, {'test_ndcg_at_10': quality}, 2)
    if path is not None:
        iteration.keep_model(run_id, path)
    iteration.end(run_id, outcome, quality)
    return run_id


def test_an_iteration_is_an_experiment_and_a_training_a_run(tracker):
    iteration = tracker.begin('account', 'Default Fine Tuning Method', 'batch', 'owner')
    run_id = learn(iteration, FIRST, 0.6)
    found = tracker.client.get_experiment_by_name('iteration / Default Fine Tuning Method / batch')
    assert found.experiment_id == iteration.id
    run = tracker.client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == (name_of(FIRST), 'FINISHED')
    assert run.data.params == {
        'batch_id': 'batch', 'plugin_name': 'Default Fine Tuning Method', 'learning_rate': '1e-05', 'freeze': '2',
    }  # fmt: skip
    history = tracker.client.get_metric_history(run_id, 'test_ndcg_at_10')
    assert [(point.step, point.value) for point in history] == [(1, 0.3), (2, 0.6)]


def test_a_training_whose_worker_was_lost_at_once_has_its_parameters_when_it_goes_on(tracker):
    iteration = tracker.begin('account', 'shop', 'batch', 'owner')
    run_id = tracker.client.create_run(iteration.id, run_name=name_of(FIRST)).info.run_id
    assert iteration.start(FIRST) == iteration.start(FIRST) == run_id
    iteration.end(run_id, FINISHED, 0.6)
    assert iteration.top(SPACE, 1) == [FIRST]


def test_what_is_left_of_deleted_runs_and_accounts_is_removed(tracker, model, monkeypatch):
    with Registry.open() as registry:
        local, shop = registry.get_account().id, registry.create_account('shop').id
        kept = []
        for account, name in ((local, 'kept'), (local, 'deleted'), (shop, 'shop')):
            run, _ = registry.create_run(account, 'fine-tuning', name, {})
            iteration = tracker.begin(account, 'method', name, f'{run.id} pretrained')
            kept.append(learn(iteration, FIRST, 0.6, model))
        tracker.keep_initial('method', 'model', lambda: model)
        assert remove_lost(registry, tracker) == 0 and len(kept_files()) == 4
        registry.delete_run(local, 'fine-tuning', 'deleted')
        registry.delete_account(shop)
        monkeypatch.setattr(tracker, 'is_local', False)
        assert remove_lost(registry, tracker) == 1, 'on a server, others may have accounts that are not known here'
        monkeypatch.setattr(tracker, 'is_local', True)
        assert remove_lost(registry, tracker) == 1
    assert sum(kept[0] in found for found in kept_files()) == 1 and len(kept_files()) == 2
    found = tracker.client.search_experiments(filter_string="name LIKE 'iteration / %'")
    assert {experiment.name for experiment in found} == {'iteration / initial', 'iteration / method / kept'}


def test_the_initial_model_is_kept_once_for_each_method(tracker, model):
    made = []

    def make():
        made.append(1)
        return model

    assert [tracker.keep_initial(name, "a 'path'/model", make) for name in ('a', 'a', 'b', 'a')] == [True, False, True,
                                                                                                    False]  # fmt: skip
    assert tracker.keep_initial('a', 'another', make)
    experiment = tracker.client.get_experiment_by_name('iteration / initial')
    runs = tracker.client.search_runs([experiment.experiment_id])
    assert [run.info.run_name for run in runs] == ['initial_model'] * 3 and len(made) == len(kept_files()) == 3


def test_two_first_tasks_at_once_keep_one_initial_model(tracker, model):
    both = threading.Barrier(2)

    def make():
        both.wait(30)  # neither has found one
        return model

    with ThreadPoolExecutor(2) as pool:
        kept = list(pool.map(lambda _: Tracker().keep_initial('m', 'model', make), range(2)))
    assert True in kept and not tracker.keep_initial('m', 'model', make)
    experiment = tracker.client.get_experiment_by_name('iteration / initial')
    [run] = tracker.client.search_runs([experiment.experiment_id])
    assert run.info.run_name == 'initial_model' and run.info.status == 'FINISHED'
    [file] = kept_files()
    assert run.info.run_id in file


def test_one_model_of_an_iteration_is_kept_and_the_others_are_gone(tracker, model, tmp_path):
    iteration = tracker.begin('account', 'm', 'batch', 'owner')
    first = learn(iteration, FIRST, 0.5, model)
    learn(iteration, SECOND, 0.4)
    assert [training.has_model for training in iteration.trainings()] == [True, False]
    model.write_bytes(b'better')
    third = learn(iteration, THIRD, 0.7, model)
    assert [training.has_model for training in iteration.trainings()] == [False, False, True]
    [kept] = kept_files()
    assert third in kept and first not in kept
    assert iteration.fetch_model(third, tmp_path / 'fetched').read_bytes() == b'better'
    assert tracker.client.list_artifacts(first) == []


def test_models_are_fetched_without_bars(tracker, model, tmp_path, capfd):
    iteration = tracker.begin('account', 'm', 'batch', 'owner')
    iteration.fetch_model(learn(iteration, FIRST, 0.5, model), tmp_path / 'fetched')
    assert '%|' not in capfd.readouterr().err


def test_the_best_parameters_come_back_with_their_types(tracker):
    iteration = tracker.begin('account', 'm', 'batch', 'owner')
    learn(iteration, FIRST, 0.5)
    learn(iteration, SECOND, 0.7)
    learn(iteration, THIRD, 0.6, outcome=PRUNED)
    iteration.start({'learning_rate': 9e-5, 'freeze': 0})
    assert iteration.top(SPACE, 2) == [SECOND, THIRD] and iteration.top(SPACE, 9) == [SECOND, THIRD, FIRST]
    narrow = Search.model_validate({'space': {'learning_rate': {'low': 1e-6, 'high': 15e-6}, 'freeze': [2]}}).space
    assert iteration.top(narrow, 9) == [FIRST]


def test_a_training_that_was_broken_off_goes_on_in_its_run(tracker):
    iteration = tracker.begin('account', 'm', 'batch', 'owner')
    run_id = iteration.start(FIRST)
    iteration.break_off(run_id, 'KILLED')
    again = tracker.begin('account', 'm', 'batch', 'owner')
    assert again.id == iteration.id and again.trainings()[0].outcome is None
    assert again.start(FIRST) == run_id
    assert tracker.client.get_run(run_id).info.status == 'RUNNING'


def test_another_owner_begins_anew_and_takes_nothing_away(tracker, model):
    iteration = tracker.begin('account', 'm', 'batch', 'owner')
    learn(iteration, FIRST, 0.5, model)
    iteration.conclude(PROMOTED)
    for owner in ('second', 'third'):
        again = tracker.begin('account', 'm', 'batch', owner)
        assert again.id != iteration.id and again.trainings() == []
        learn(again, FIRST, 0.5, model)
        assert tracker.last('account', 'm', again.id).id == iteration.id and len(kept_files()) == 2
        again.conclude(PROMOTED)
        tracker.remove_others('account', 'm', again.id)
        assert len(kept_files()) == 1
        iteration = again
    tracker.client.delete_experiment(iteration.id)
    assert tracker.begin('account', 'm', 'batch', 'third').trainings() == [], 'somebody has deleted what there was'


def test_what_the_same_run_has_begun_by_another_method_is_removed(tracker, model):
    former = tracker.begin('account', 'm', 'batch', 'run pretrained one')
    kept = learn(former, FIRST, 0.5, model)
    lost = former.start(SECOND)
    again = tracker.begin('account', 'm', 'batch', 'run pretrained other')
    assert again.id != former.id and again.trainings() == [] and kept_files() == []
    assert tracker.client.get_experiment(former.id).lifecycle_stage == 'deleted'
    assert [tracker.client.get_run(run_id).info.status for run_id in (kept, lost)] == ['FINISHED', 'KILLED']
    assert tracker.begin('account', 'm', 'batch', 'run pretrained other').id == again.id
    other = tracker.begin('account', 'm', 'batch', 'another pretrained other')
    assert other.id != again.id and tracker.client.get_experiment(again.id).lifecycle_stage == 'active'


def test_a_method_that_changes_between_two_attempts_begins_another_iteration(local, monkeypatch):
    monkeypatch.setattr('training.iterations.training.gather', lambda *_: SimpleNamespace(validation=None))
    monkeypatch.setattr('training.iterations.training._embed', lambda *_: None)
    task, run = SimpleNamespace(account_id='account'), SimpleNamespace(id='run')
    work = Work(None, task, run, settings.home(), print, Recovery(60.0))
    values = {'name': 'shop', 'model': 'all-minilm-l6-v2', 'items': {'loader': 'inline'}}
    first, again, changed = (
        set_up(work, Method.model_validate({**values, 'fit': {'epochs': epochs}}), 'batch', Start())
        for epochs in (3, 3, 4)
    )
    assert first.iteration.id == again.iteration.id != changed.iteration.id
    candidate = SimpleNamespace(name=name_of(FIRST))
    assert training_folder(first, candidate) == training_folder(again, candidate) != training_folder(changed, candidate)
    assert [found.run_id for found in local.owned()] == ['run'], 'the first one is gone'


@pytest.mark.parametrize('name', ['delete_experiment', 'restore_experiment', 'rename_experiment'])
def test_an_iteration_is_replaced_also_if_an_answer_of_mlflow_is_lost(tracker, model, monkeypatch, name):
    monkeypatch.setattr('training.errors.PAUSE', 0.01)
    learn(tracker.begin('account', 'm', 'batch', 'first'), FIRST, 0.5, model)
    call, lost = getattr(tracker.impatient_client, name), []

    def lose_the_first_answer(*arguments):
        call(*arguments)
        if not lost:
            lost.append(arguments)
            raise ConnectionResetError('the answer is lost')

    first = tracker.begin('account', 'm', 'batch', 'first')
    tracker.client.delete_experiment(first.id)
    monkeypatch.setattr(tracker.impatient_client, name, lose_the_first_answer)
    second = tracker.begin('account', 'm', 'batch', 'second')
    assert lost and second.id != first.id and second.trainings() == []
    found = tracker.client.get_experiment(first.id)
    assert (found.lifecycle_stage, found.name) == ('deleted', f'{first.name} / {first.id}')
    tracker.remove(second.id)
    assert tracker.client.get_experiment(second.id).lifecycle_stage == 'deleted'
    with pytest.raises(MlflowException):
        tracker._set_stage('12345', 'deleted')


def test_the_last_iteration_is_the_latest_whose_model_was_promoted(tracker, model):
    assert tracker.last('account', 'm', 'none') is None
    found = []
    for batch, state in (('1', PROMOTED), ('2', REFUSED), ('3', None)):
        iteration = tracker.begin('account', 'm', batch, f'owner {batch}')
        learn(iteration, FIRST, 0.5, model)
        if state:
            iteration.conclude(state)
        found.append(iteration)
    assert tracker.last('account', 'm', found[2].id).id == found[0].id
    assert tracker.last('account', 'm', found[0].id) is None
    assert tracker.last('account', 'other', 'none') is tracker.last('other', 'm', 'none') is None
    new = tracker.begin('account', 'm', '4', 'owner 4')
    tracker.begin('other', 'm', '5', 'owner 5').conclude(PROMOTED)
    new.conclude(PROMOTED)
    tracker.remove_others('account', 'm', new.id)
    names = {experiment.name for experiment in tracker.client.search_experiments()}
    assert names == {'Default', 'iteration / m / 3', 'iteration / m / 4', 'iteration / m / 5'}, 'one may go on'
    assert len(kept_files()) == 1


@pytest.fixture
def hurried():
    """SQLite gives up after 50 milliseconds; MLflow has it wait for 20 seconds."""

    def hurry(connection, cursor, statement, *rest):
        return statement.replace('busy_timeout = 20000', 'busy_timeout = 50'), rest[0]

    event.listen(Engine, 'before_cursor_execute', hurry, retval=True)
    yield
    event.remove(Engine, 'before_cursor_execute', hurry)


def test_a_database_that_is_locked_for_a_moment_is_waited_for(local, hurried, monkeypatch, caplog):
    monkeypatch.setattr('training.errors.PAUSE', 0.1)
    iteration = local.begin('account', 'm', 'batch', 'owner')
    other = sqlite3.connect(settings.home() / 'mlflow.db', check_same_thread=False)
    other.execute('BEGIN EXCLUSIVE')
    with pytest.raises(MlflowException, match='database is locked') as locked:
        local.impatient_client.search_experiments()
    assert is_passing(locked.value) and passing_reason(locked.value) == 'MLflow does not answer'
    release = threading.Timer(0.5, other.rollback)
    release.start()
    run_id = iteration.start(FIRST)
    release.join()
    assert local.client.get_run(run_id).info.run_name == name_of(FIRST)
    assert caplog.messages == ['MLflow does not answer: trying again']


@pytest.fixture
def stub(monkeypatch):
    """A server in place of MLflow's; the value is its URL, what it answers in turn, and how often it was asked."""
    monkeypatch.setenv('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '0')
    monkeypatch.setattr('training.errors.PAUSE', 0.01)
    answers, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, body = answers.pop(0)
            if status is None:
                self.connection.close()
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}', answers, asked
        server.shutdown()


FOUND = (200, {'experiment': {'experiment_id': '7', 'name': 'n'}})


def test_a_server_that_is_away_for_a_moment_is_asked_again(stub):
    url, answers, asked = stub
    answers += [(503, {}), (500, {}), (429, {}), (None, {}), FOUND]
    assert Tracker(url).client.get_experiment_by_name('n').experiment_id == '7' and len(asked) == 5


def test_what_a_server_refuses_is_not_asked_for_again(stub):
    url, answers, asked = stub
    answers += [(404, {'error_code': 'RESOURCE_DOES_NOT_EXIST'}), (403, {'error_code': 'PERMISSION_DENIED'})]
    tracker = Tracker(url)
    assert tracker.client.get_experiment_by_name('n') is None
    with pytest.raises(MlflowException) as refused:
        tracker.client.get_experiment_by_name('n')
    assert not is_passing(refused.value) and len(asked) == 2


def test_an_attempt_whose_server_stays_away_may_succeed_later(monkeypatch):
    monkeypatch.setenv('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '0')
    monkeypatch.setattr('training.iterations.tracking.PATIENCE', 0.0)
    with pytest.raises(MlflowException) as away:
        Tracker('http://127.0.0.1:9').begin('account', 'm', 'batch', 'owner')
    assert is_passing(away.value) and passing_reason(away.value) == 'MLflow does not answer'


def test_a_run_whose_making_was_not_answered_and_was_made_again_is_one(tracker, monkeypatch):
    iteration = tracker.begin('account', 'm', 'batch', 'owner')
    client, make = tracker.impatient_client, tracker.impatient_client.create_run

    def make_twice(*arguments, **options):
        make(*arguments, **options)
        return make(*arguments, **options)

    monkeypatch.setattr(client, 'create_run', make_twice)
    run_id = iteration.start(FIRST)
    assert len(iteration.trainings()) == 2 and iteration.start(FIRST) == run_id
