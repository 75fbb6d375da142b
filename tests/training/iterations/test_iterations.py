"""From a task and a batch of clicks to a model in the registry, as the worker of a run does it."""

from __future__ import annotations

import json
import logging
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from finetuner.excepts import DataError, NotFoundError
from finetuner.inference import load_engine
from tests.elsewhere import encode_elsewhere
from tests.training.iterations.shopkeeper import ALIAS, METHOD, Shopkeeper
from training.iterations import carrying
from training.iterations.iteration import Outcome, iterate
from training.iterations.tracking import Tracker


@pytest.fixture(scope='module')
def keeper(tmp_path_factory, shop_model, click):
    """Someone who has sold for a while, and has asked for a task that is done."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('keeper')
    made = Shopkeeper.with_method(folder, shop_model)
    click(made.registry, made.account, 1200)
    yield made
    made.registry.close()


@pytest.fixture(autouse=True)
def in_the_home_of(keeper, monkeypatch):
    keeper.set_variables(monkeypatch)


@pytest.fixture(scope='module')
def first(keeper):
    """The first task, whose worker is lost in its second training, and which another one goes on with."""
    with pytest.MonkeyPatch.context() as patch:
        keeper.set_variables(patch)
        task = keeper.ask(metadata={'who': 'ann'})
        keeper.registry.clicks.register_session(keeper.account, 'while it waits', 'red', [])

        def lose(progress):
            if progress.stage.startswith('Training 2 of 2: Training') and progress.epoch == 2:
                raise SystemExit(143)

        with pytest.raises(SystemExit):
            keeper.work(task, lose)
        assert len(keeper.models()) == 1
        return keeper.work(task)


def test_a_task_ends_with_a_better_model(keeper, first):
    assert first.status == 'done' and first.details.startswith(f'Promoted to {ALIAS}: ndcg_at_10 of ')
    assert first.metrics['promoted'] is True and first.metrics['trainings'] == 2
    found = first.metrics['comparison']['ndcg_at_10']
    assert found['difference'][1] > 0 and found['p_value'] < 0.05
    assert first.metrics['after']['ndcg_at_10'] == found['after'][0] > first.metrics['before']['ndcg_at_10']
    assert first.metrics['after'].keys() == {'ndcg_at_10', 'reciprocal_rank', 'recall_at_10'}
    assert {'test_not_irrelevant_dist_shift', 'test_irrelevant_dist_shift'} <= first.metrics.keys()
    assert 1e-3 <= first.metrics['parameters']['learning_rate'] <= 4e-3
    json.dumps(first.metrics)


def test_the_artifact_of_a_task_tells_what_its_training_has_gained(keeper, first):
    path = keeper.registry.artifact_file(keeper.registry.get_artifact(keeper.account, first.artifact_id))
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('/metrics.yml'))
        metrics = yaml.safe_load(archive.read(name))
    assert metrics['before'].keys() == metrics['after'].keys() == first.metrics['after'].keys()
    best = max(run.data.metrics['quality'] for run in keeper.trainings(first))
    assert metrics['after']['ndcg_at_10'] == pytest.approx(best) and best > metrics['before']['ndcg_at_10']


def test_the_batch_that_collected_was_released_when_the_work_began(keeper, first):
    batch = keeper.registry.clicks.get_batch(keeper.account, first.batch_id)
    assert (batch.status, batch.release_id, batch.sessions) == ('released', first.id, 1201)
    waited = keeper.registry.clicks.get_session(keeper.account, 'while it waits')
    assert waited.batch_id == first.batch_id, 'also what came after the task was asked for'


def test_the_names_in_mlflow_are_those_of_embedding_studio(keeper, first):
    experiment = keeper.mlflow.get_experiment_by_name(f'iteration / {METHOD["name"]} / {first.batch_id}')
    runs = keeper.mlflow.search_runs([experiment.experiment_id])
    assert len(runs) == 2, 'the one that was broken off went on in its run'
    for run in runs:
        assert run.info.status == 'FINISHED' and len(run.info.run_name) == 64
        assert run.data.params['plugin_name'] == METHOD['name'] and run.data.params['batch_id'] == first.batch_id
        steps = [point.step for point in keeper.mlflow.get_metric_history(run.info.run_id, 'test_ndcg_at_10')]
        assert sorted(set(steps)) == [1, 2, 3], 'an epoch before a checkpoint may be there twice'
    assert {'test_not_irrelevant_dist_shift', 'test_irrelevant_dist_shift', 'train_loss'} <= runs[0].data.metrics.keys()
    initial = keeper.mlflow.get_experiment_by_name('iteration / initial')
    [run] = keeper.mlflow.search_runs([initial.experiment_id])
    assert run.info.run_name == 'initial_model'


def test_one_model_is_kept_and_the_registry_has_it(keeper, first):
    [kept] = keeper.models()
    artifact = keeper.registry.get_artifact(keeper.account, first.artifact_id)
    assert artifact.aliases == (ALIAS,) and artifact.size == kept.stat().st_size
    assert keeper.registry.artifact_file(artifact).read_bytes() == kept.read_bytes()
    folder = keeper.registry.run_directory(first.run_id)
    assert list(folder.iterdir()) == [], 'what was needed on the way is gone'


def test_the_share_of_items_that_are_learned_from_and_judged_by_is_told(keeper, shop):
    account = keeper.registry.create_account('sharing').id
    for number, (query, product) in enumerate(zip(shop.queries[:50], shop.products[1:51], strict=True)):
        shown = [shop.products[0], product]  # the first one is shown in every session, others in one
        results = [{'object_id': found.object_id, 'meta': {'text': found.title}} for found in shown]
        keeper.registry.clicks.register_session(account, f's{number}', query.text, results)
        event = {'event_id': 'e', 'object_id': product.object_id}
        keeper.registry.clicks.register_events(account, f's{number}', [event])
    task = keeper.work(keeper.registry.tuning.create_task(account, METHOD['name'], {'device': 'cpu'})[0])
    assert task.metrics['sessions'] == 10
    assert task.metrics['shared_items'] == pytest.approx(1 / 11), 'the first one, of it and ten others'


@pytest.mark.slow
def test_the_model_is_opened_without_this_program(keeper, first, tmp_path):
    artifact = keeper.registry.get_artifact(keeper.account, first.artifact_id)
    path = keeper.registry.artifact_file(artifact)
    ours = load_engine(path).encode_texts(['fleece blanket', 'stay dry, red'])
    assert np.allclose(encode_elsewhere(path, ['fleece blanket', 'stay dry, red'], tmp_path), ours, atol=1e-5)


def test_clicks_that_say_nothing_promote_nothing_and_leave_all_as_it_was(keeper, first, click):
    click(keeper.registry, keeper.account, 300, seed=9, at_random=True)
    before = keeper.registry.get_promotion(keeper.account, ALIAS)
    task = keeper.work(keeper.ask())
    assert task.status == 'done' and task.metrics['promoted'] is False
    assert task.details.startswith('Not promoted: ')
    assert keeper.registry.get_promotion(keeper.account, ALIAS) == before
    assert keeper.registry.get_artifact(keeper.account, task.artifact_id).aliases == ()
    assert keeper.mlflow.get_experiment_by_name(f'iteration / {METHOD["name"]} / {first.batch_id}')


@pytest.mark.slow
def test_the_next_iteration_goes_on_from_the_best_of_the_last(keeper, first, click, caplog, monkeypatch):
    click(keeper.registry, keeper.account, 1500, seed=5)
    starts = []

    def iterate_and_note(work, method, batch_id, start):
        starts.append(start.artifact_id)
        return iterate(work, method, batch_id, start)

    monkeypatch.setattr(carrying, 'iterate', iterate_and_note)
    with caplog.at_level(logging.INFO):
        task = keeper.work(keeper.ask())
    assert task.status == 'done', task.details
    assert starts == [first.artifact_id]
    learned = f"Training 1 of 2: {{'learning_rate': {first.metrics['parameters']['learning_rate']}}}"
    assert learned in caplog.messages, 'it begins with what was best'
    initial = keeper.mlflow.get_experiment_by_name('iteration / initial')
    assert len(keeper.mlflow.search_runs([initial.experiment_id])) == 1, 'nothing is kept a second time'
    names = {experiment.name for experiment in keeper.mlflow.search_experiments()}
    former = f'iteration / {METHOD["name"]} / {first.batch_id}'
    assert (former in names) is not task.metrics['promoted'], 'it goes when another has taken its place'
    best = task if task.metrics['promoted'] else first
    click(keeper.registry, keeper.account, 600, seed=6)
    third = keeper.work(keeper.ask())
    assert third.status == 'done' and third.artifact_id not in (None, task.artifact_id, first.artifact_id)
    assert starts[1:] == [best.artifact_id]


def test_a_model_that_is_promoted_meanwhile_keeps_its_place(keeper, monkeypatch, tmp_path):
    registry, artifact, states = keeper.registry, tmp_path / 'model.zip', []
    artifact.write_bytes(b'weights')
    account = registry.create_account('in-between').id
    registry.clicks.register_session(account, 's', 'q', [{'object_id': 'a'}])
    other, _ = registry.create_run(account, 'by-hand', 'other', {})

    def iterate(work, method, batch_id, start):
        registry.start_run(other.id, 'host:1')
        registry.finish_run(other.id, artifact, {}, {}, alias=ALIAS)
        iteration = SimpleNamespace(conclude=states.append)
        return Outcome(artifact, True, 'better', {'promoted': True}, iteration)

    monkeypatch.setattr(carrying, 'iterate', iterate)
    task, _ = registry.tuning.create_task(account, METHOD['name'], {'device': 'cpu'})
    done = keeper.work(task)
    assert (done.status, done.metrics, states) == ('done', {'promoted': False}, ['refused'])
    assert done.details.startswith(f'Not promoted: {ALIAS} was given another model meanwhile, which this one')
    assert registry.get_promotion(account, ALIAS).artifact_id == other.artifact_id


@pytest.mark.slow
def test_a_moment_without_mlflow_costs_no_training(keeper, click, monkeypatch):
    monkeypatch.setattr('training.errors.PAUSE', 0.01)
    account = keeper.registry.create_account('patient').id
    click(keeper.registry, account, 100, seed=6)
    log, failures = MlflowClient.log_batch, []

    def fail_twice_an_epoch(client, run_id, metrics=(), **options):
        if metrics and len(failures) % 3 < 2:
            failures.append(metrics[0].step)
            raise MlflowException('database is locked', TEMPORARILY_UNAVAILABLE)
        failures.append(None)
        log(client, run_id, metrics, **options)

    monkeypatch.setattr(MlflowClient, 'log_batch', fail_twice_an_epoch)
    task = keeper.work(keeper.registry.tuning.create_task(account, METHOD['name'], {'device': 'cpu'})[0])
    assert (task.status, task.metrics['trainings']) == ('done', 2) and {1, 2, 3} <= set(failures)


def test_too_few_sessions_are_told(keeper, click):
    other = keeper.registry.create_account('other').id
    with pytest.raises(NotFoundError, match='There is no collecting batch'):
        keeper.work(keeper.registry.tuning.create_task(other, METHOD['name'], {})[0])
    click(keeper.registry, other, 1, seed=3)
    with pytest.raises(DataError, match='the only session of the batch has no click'):
        keeper.work(keeper.registry.tuning.create_task(other, METHOD['name'], {})[0])
    keeper.registry.clicks.register_session(other, 's', 'q', [{'object_id': 'a', 'meta': {'text': 'a'}}])
    keeper.registry.clicks.register_events(other, 's', [{'event_id': 'e', 'object_id': 'a'}])
    with pytest.raises(DataError, match='at least 2 different queries are needed to split'):
        keeper.work(keeper.registry.tuning.create_task(other, METHOD['name'], {})[0])


def last_iteration(keeper, other_than='none'):
    """All that MLflow and the registry have of it."""
    last = Tracker().last(keeper.account, METHOD['name'], other_than)
    runs = sorted(keeper.mlflow.search_runs([last.id]), key=lambda run: run.info.run_id)
    files = {path: path.read_bytes() for path in keeper.models() if any(run.info.run_id in str(path) for run in runs)}
    assert len(files) == 1
    tags, alias = keeper.mlflow.get_experiment(last.id).tags, keeper.registry.get_promotion(keeper.account, ALIAS)
    return last.id, last.name, tags, [run.to_dictionary() for run in runs], files, alias


def test_a_task_whose_trainings_fail_leaves_the_last_iteration_as_it_was(keeper, first, click, monkeypatch):
    click(keeper.registry, keeper.account, 60, seed=4)

    def fail(*arguments, **options):
        raise ValueError('the loss is not a number')

    monkeypatch.setattr('training.iterations.training.run_fit', fail)
    task, before = keeper.ask(), last_iteration(keeper)
    with pytest.raises(ValueError, match='the loss is not a number'):
        keeper.work(task)
    batch_id = keeper.registry.tuning.get_task_by_id(task.id).batch_id
    failed = keeper.mlflow.get_experiment_by_name(f'iteration / {METHOD["name"]} / {batch_id}')
    assert [run.info.status for run in keeper.mlflow.search_runs([failed.experiment_id])] == ['FAILED', 'FAILED']
    assert last_iteration(keeper, failed.experiment_id) == before
