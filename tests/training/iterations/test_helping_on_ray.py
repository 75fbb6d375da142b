"""Trainings of one iteration on two nodes of a Ray cluster."""

from __future__ import annotations

import logging

import psutil
import pytest

from executors.supervisor import Supervisor
from registry.records import STARTED
from registry.tuning_tasks import EXPERIMENT
from tests.integration.conftest import wait_until
from tests.training.iterations.mlflow_server import TrackingServer
from tests.training.iterations.shopkeeper import Shopkeeper
from training.launchers.attempt import Policy
from training.launchers.ray_cluster import RayLauncher

LOGGER = logging.getLogger('ray-test')


def place_of(registry, run_id):
    """The home of the node that works on a run; None while none does."""
    worker = psutil.Process(int(registry.get_run_by_id(run_id).worker.rpartition(':')[2]))
    # until it is there, it is the service that speaks for it
    return worker.environ()['FINETUNER_HOME'] if 'training.worker' in worker.cmdline() else None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_task_and_its_helper_are_carried_by_two_nodes(tmp_path, shop_model, empty_mlflow, click, monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv('FINETUNER_DATABASE_URL', f'sqlite:///{tmp_path}/registry.db')
    monkeypatch.setenv('FINETUNER_OBJECTS_URL', str(tmp_path / 'objects'))
    keeper = Shopkeeper.with_method(tmp_path, shop_model, evaluations=3, parallel=2)
    keeper.set_variables(monkeypatch)
    registry, policy = keeper.registry, Policy(retry_delay=0.1)
    click(registry, keeper.account, 600)

    def find_helper():
        if not any(found.name == EXPERIMENT for found in registry.list_experiments(keeper.account).items):
            return None
        runs = registry.list_runs(keeper.account, EXPERIMENT).items
        return next((run.id for run in runs if 'helps' in run.config and run.status == STARTED), None)

    (tmp_path / 'mlflow').mkdir()
    with TrackingServer(tmp_path / 'mlflow', empty_mlflow).running() as server:
        monkeypatch.setenv('MLFLOW_TRACKING_URI', server.url)
        # the head has no room for runs, and the nodes for one each
        cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 0})
        supervisor = None
        try:
            for name in ('a', 'b'):
                cluster.add_node(num_cpus=1, env_vars={'FINETUNER_HOME': str(tmp_path / name)})
            launcher = RayLauncher(registry, LOGGER, cluster.address, policy)
            supervisor = Supervisor(registry, LOGGER, launcher, policy)
            supervisor.start()
            task = keeper.ask()
            helper = wait_until(find_helper, 240, 'a helper at work')
            places = {
                wait_until(lambda run=run: place_of(registry, run), 60, 'the place') for run in (task.run_id, helper)
            }
            assert places == {str(tmp_path / name) for name in ('a', 'b')}

            def ended():
                found = registry.tuning.get_task_by_id(task.id)
                return found if found.status in ('done', 'error', 'canceled') else None

            task = wait_until(ended, 400, 'the end of the task')
            log = registry.read_log(task.run_id, 0, 1 << 20).decode()
            assert (task.status, task.metrics and task.metrics['trainings']) == ('done', 3), f'{task.details} {log}'
            assert find_helper() is None
        finally:
            if supervisor is not None:
                supervisor.close()
            ray.shutdown()
            cluster.shutdown()
            registry.close()
