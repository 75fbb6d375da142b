"""A Ray cluster of two nodes on this machine, and a node that is killed."""

import logging
import time
import zipfile

import psutil
import pytest

from finetuner.data import read_csv
from finetuner.excepts import ParameterError
from registry import Registry
from training.launchers.attempt import Policy
from training.launchers.ray_cluster import RayLauncher

LOGGER = logging.getLogger('ray-test')


def wait_until(condition, seconds=400):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


@pytest.fixture
def registry(train_csv, tmp_path, monkeypatch):
    monkeypatch.setenv('FINETUNER_DATABASE_URL', f'sqlite:///{tmp_path}/registry.db')
    monkeypatch.setenv('FINETUNER_OBJECTS_URL', str(tmp_path / 'objects'))
    monkeypatch.setenv('FINETUNER_CHECKPOINT_SECONDS', '0.5')
    with Registry.open() as registry:
        registry.append_documents(registry.get_account().id, 'train', read_csv(train_csv))
        yield registry


def test_a_registry_that_nodes_cannot_reach_is_refused_at_the_start(tmp_path, monkeypatch):
    with Registry.open() as registry:
        for name in ('FINETUNER_DATABASE_URL', 'FINETUNER_OBJECTS_URL'):
            with pytest.raises(ParameterError, match=f'FINETUNER_RAY_ADDRESS is set and {name} is not'):
                RayLauncher(registry, LOGGER, 'localhost:1', Policy())
            monkeypatch.setenv(name, f'sqlite:///{tmp_path}/x')


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_run_of_a_node_that_is_killed_goes_on_from_its_checkpoint_on_the_other(registry, word_model, tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    # the head has no room for runs: its end would be that of the cluster
    cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 0})
    nodes = [cluster.add_node(num_cpus=1, env_vars={'FINETUNER_HOME': str(tmp_path / name)}) for name in ('a', 'b')]
    launcher = None
    try:
        policy = Policy(retry_delay=0.1)
        launcher = RayLauncher(registry, LOGGER, cluster.address, policy)

        def start():
            def claim():
                launcher.look()  # an actor that has ended makes room
                return registry.claim_run('test:1', launcher.machines(), launcher.run_ids())

            return wait_until(claim)

        def submit(name):
            config = {'model': str(word_model), 'train_data': 'train', 'epochs': 6, 'batch_size': 24, 'device': 'cpu'}
            return registry.create_run(registry.get_account().id, 'default', name, config, '', ['train'])[0]

        def look(run, *statuses):
            def reached():
                launcher.look()
                return registry.get_run_by_id(run.id).status in statuses

            wait_until(reached)
            return registry.get_run_by_id(run.id)

        run = submit('killed')
        launcher.launch(start())
        wait_until(lambda: launcher.look() or registry.find_checkpoint(run.id))
        worker = psutil.Process(int(registry.get_run_by_id(run.id).worker.rpartition(':')[2]))
        place = worker.environ()['FINETUNER_HOME']
        worker.suspend()  # or it may be done before the node is gone
        cluster.remove_node(nodes[0 if place.endswith('a') else 1], allow_graceful=False)
        worker.kill()
        waiting = look(run, 'CREATED')
        assert 'Attempt 2 of 3 goes on from the last checkpoint' in waiting.details
        launcher.launch(start())
        finished = look(run, 'FINISHED', 'FAILED')
        log = registry.read_log(run.id, 0, 1 << 20).decode()
        assert finished.status == 'FINISHED', f'{finished.details} {log}'
        assert 'Fetched the checkpoint step-' in log and 'Going on from step' in log
        assert registry.find_checkpoint(run.id) is None

        submit('alone')
        alone = start()
        launcher.launch(alone)
        assert weights_of(registry, look(alone, 'FINISHED', 'FAILED')) == weights_of(registry, finished)
    finally:
        if launcher is not None:
            launcher.close()
        ray.shutdown()
        cluster.shutdown()


def weights_of(registry, run):
    artifact = registry.artifact_file(registry.get_artifact(run.account_id, run.artifact_id))
    with zipfile.ZipFile(artifact) as zipped:
        [name] = [name for name in zipped.namelist() if name.endswith('model.safetensors')]
        return zipped.read(name)
