"""A task of which nothing comes, worked on by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.training.iterations.shopkeeper import Shopkeeper


@pytest.mark.slow
def test_a_task_of_which_every_training_fails_is_an_error_with_its_reason(tmp_path, shop_model, click):
    keeper = Shopkeeper.with_method(tmp_path, shop_model, space={'learning_rate': [1e30, 1e35]})
    with keeper.registry:
        click(keeper.registry, keeper.account, 200)
        task = keeper.ask()
        command = [sys.executable, '-W', 'ignore', '-m', 'training.worker', task.run_id]
        done = subprocess.run(
            command, env={**os.environ, **keeper.variables}, check=False, stdout=subprocess.PIPE, text=True
        )
        assert done.returncode == 1, done.stdout
        failed = keeper.registry.tuning.get_task(keeper.account, task.id)
        assert failed.status == 'error'
        assert failed.details.startswith('the loss is nan in step') and failed.details.endswith('lower learning_rate')
        assert (failed.artifact_id, failed.metrics, keeper.models()) == (None, None, [])
        assert keeper.registry.list_promotions(keeper.account).items == []
        experiment = keeper.mlflow.get_experiment_by_name(f'iteration / Default Fine Tuning Method / {failed.batch_id}')
        runs = keeper.mlflow.search_runs([experiment.experiment_id])
        assert [run.info.status for run in runs] == ['FAILED', 'FAILED'], 'each of them was tried'
