"""Trainings that are worse than those before them end early, in the process of the task and in that of a helper."""

from __future__ import annotations

import shutil

import pytest
import torch

from registry.names import new_id
from registry.records import CANCELLED
from registry.tuning_tasks import EXPERIMENT
from tests.training.iterations.shopkeeper import METHOD, Shopkeeper
from training.heartbeat import Heartbeat
from training.interruption import Interruption
from training.iterations import helping
from training.iterations.carrying import carry
from training.iterations.iteration import _pack
from training.iterations.search import ParameterSearch
from training.iterations.tracking import FINISHED, PRUNED, Tracker
from training.iterations.training import Start, set_up
from training.methods import load_method

NEARLY_PERFECT, HOPELESS = [{'learning_rate': 1e-3}, {'learning_rate': 4e-3}], {'learning_rate': 2e-3}


@pytest.fixture
def keeper(tmp_path, shop_model, empty_mlflow, click, monkeypatch):
    torch.set_num_threads(1)
    made = Shopkeeper.with_method(tmp_path, shop_model, evaluations=3)
    shutil.copyfile(empty_mlflow, made.home / 'mlflow.db')
    made.set_variables(monkeypatch)
    click(made.registry, made.account, 100)
    yield made
    made.registry.close()


@pytest.fixture
def method(keeper):
    return load_method(METHOD['name'])


def begun(task, batch_id):
    owner = f'{task.run_id} pretrained {load_method(METHOD["name"]).digest}'
    return Tracker().begin(task.account_id, METHOD['name'], batch_id, owner)


@pytest.fixture
def task(keeper, method):
    """Two of its trainings were done already, and could hardly be better."""
    asked = keeper.ask()
    batch_id = keeper.registry.clicks.release_batch(keeper.account, asked.id).id
    keeper.registry.tuning.set_batch(asked.id, batch_id)
    iteration = begun(asked, batch_id)
    for values in NEARLY_PERFECT:
        run_id = iteration.start(values)
        for epoch in (1, 2, 3):
            iteration.log(run_id, {'test_ndcg_at_10': 0.99}, epoch)
        iteration.end(run_id, FINISHED, 0.99)
    return keeper.registry.tuning.get_task_by_id(asked.id)


def pruned(keeper, task):
    """The run of MLflow of the one training that was hopeless, and its epochs."""
    experiment = keeper.mlflow.get_experiment_by_name(f'iteration / {METHOD["name"]} / {task.batch_id}')
    [run] = keeper.mlflow.search_runs([experiment.experiment_id], f"tags.outcome = '{PRUNED}'")
    return run, [point.step for point in keeper.mlflow.get_metric_history(run.info.run_id, 'test_ndcg_at_10')]


@pytest.mark.slow
def test_a_hopeless_training_ends_early_and_leaves_no_model(keeper, task, method, tmp_path):
    iteration = begun(task, task.batch_id)
    iteration.keep_model(iteration.trainings()[1].run_id, _pack(method, tmp_path))
    done = keeper.work(task)
    run, epochs = pruned(keeper, done)
    assert (run.info.status, epochs) == ('KILLED', [1, 2]), 'of three'
    assert 0 < run.data.metrics['quality'] < 0.99 and 'model_uploaded' not in run.data.metrics
    assert done.status == 'done' and done.metrics['trainings'] == 3
    assert done.metrics['parameters'] == NEARLY_PERFECT[1]
    assert (
        not list(keeper.mlflow.list_artifacts(run.info.run_id)) and len(list(keeper.home.rglob('mlflow/**/*.zip'))) == 2
    )


def test_a_hopeless_training_of_a_helper_ends_early_and_leaves_no_model(keeper, task, method):
    registry = keeper.registry
    assert registry.start_run(task.run_id, 'host:1', new_id())
    setting = set_up(keeper.work_of(task), method, task.batch_id, Start())
    candidate = ParameterSearch(method.search, setting.seed, first=[HOPELESS]).ask()
    known = [training.name for training in setting.iteration.trainings()]
    run_id = helping.delegate(setting, candidate, known)
    assert helping.find_helper(setting, candidate) == run_id and helping.collect(setting, run_id, candidate) is None
    lease = new_id()
    assert registry.start_run(run_id, 'host:2', lease)
    heartbeat = Heartbeat(registry, run_id, lease, 'host:2')
    carry(registry, registry.get_run_by_id(run_id), task.id, heartbeat, Interruption(), 60.0)
    assert registry.get_run_by_id(run_id).status == CANCELLED
    run, epochs = pruned(keeper, task)
    assert (run.info.run_name, run.info.status, epochs) == (candidate.name, 'KILLED', [1, 2])
    result = helping.collect(setting, run_id, candidate)
    assert result == helping.Result(run.data.metrics['quality'], None) and 0 < result.quality < 0.99
    helping.dismiss(setting, run_id)
    assert [found.id for found in registry.list_runs(keeper.account, EXPERIMENT).items] == [task.run_id]
