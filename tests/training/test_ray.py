"""A Ray cluster of two nodes on this machine, and a node that is killed."""

import logging
import time
import zipfile

import psutil
import pytest

from finetuner.data import read_csv
from finetuner.excepts import NotFoundError, ParameterError
from registry import Registry
from registry.queue import Machine, Resources
from training.launchers.attempt import Attempt, Policy
from training.launchers.ray_cluster import Kept, RayLauncher, method_files, worker_environment
from training.methods import files_of, load_method

LOGGER = logging.getLogger('ray-test')
METHOD = """
name: shop
model: all-minilm-l6-v2
items: {loader: inline, fields: [title, text]}
loss: MultipleNegativeRankingLoss
fit: {epochs: 2, learning_rate: 1e-5}
search: {evaluations: 2, space: {learning_rate: {low: 1e-6, high: 0.01, log: true}, freeze: [0, 2]}}
"""


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


def test_a_registry_that_is_told_in_files_is_reached_from_nodes_without_them(tmp_path, monkeypatch):
    """As exported deployments tell it."""
    (tmp_path / 'url').write_text('postgresql://user:s3cret@host/name\n')
    (tmp_path / 'keys').write_text('[default]\naws_access_key_id = id\naws_secret_access_key = a%key\n')
    monkeypatch.setenv('FINETUNER_DATABASE_URL_FILE', str(tmp_path / 'url'))
    monkeypatch.setenv('FINETUNER_OBJECTS_URL', 's3://bucket/prefix')
    monkeypatch.setenv('AWS_SHARED_CREDENTIALS_FILE', str(tmp_path / 'keys'))
    told = worker_environment()
    assert told['FINETUNER_DATABASE_URL'] == 'postgresql://user:s3cret@host/name'
    assert (told['AWS_ACCESS_KEY_ID'], told['AWS_SECRET_ACCESS_KEY']) == ('id', 'a%key')
    assert not [name for name in told if name.endswith('_FILE')]
    (tmp_path / 'keys').write_text('')
    with pytest.raises(ParameterError, match="has no keys of the profile 'default'"):
        worker_environment()


def test_nodes_are_told_of_mlflow(monkeypatch):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://mlflow:5000')
    monkeypatch.setenv('MLFLOW_TRACKING_PASSWORD', 's3cret')
    told = worker_environment()
    assert (told['MLFLOW_TRACKING_URI'], told['MLFLOW_TRACKING_PASSWORD']) == ('http://mlflow:5000', 's3cret')


def test_a_node_is_given_the_method_of_a_task(tmp_path, monkeypatch):
    (tmp_path / 'shop.yml').write_text(METHOD)
    monkeypatch.setenv('FINETUNER_METHODS', str(tmp_path))
    with Registry.open() as registry:
        account = registry.get_account().id
        task, _ = registry.tuning.create_task(account, 'shop', {})
        other, _ = registry.tuning.create_task(account, 'none-such', {})
        run, _ = registry.create_run(account, 'default', 'run', {})
        files = method_files(registry, registry.get_run_by_id(task.run_id))
        assert method_files(registry, run) == {}
        with pytest.raises(NotFoundError, match='none-such'):
            method_files(registry, registry.get_run_by_id(other.run_id))
    node = tmp_path / 'node'
    node.mkdir()
    for name, content in files.items():
        (node / name).write_text(content)
    assert load_method('shop', [node]) == load_method('shop')


def test_a_node_is_given_the_class_of_a_method(tmp_path):
    (tmp_path / 'shop.yml').write_text(METHOD + '\nclass: our_shop.OurShop\nregulars: [ann]\n')
    (tmp_path / 'our_shop.py').write_text(
        'from training.methods import Method\n\nclass OurShop(Method):\n    regulars: list[str] = []\n'
    )
    node = tmp_path / 'node'
    node.mkdir()
    for name, content in files_of(load_method('shop', [tmp_path])).items():
        (node / name).write_text(content)
    found = load_method('shop', [node])
    assert type(found).__name__ == 'OurShop' and found.regulars == ['ann']


def test_a_client_of_ray_is_refused(monkeypatch):
    with Registry.open() as registry, pytest.raises(ParameterError, match='Make the machine of the trainer one of'):
        RayLauncher(registry, LOGGER, 'ray://host:10001', Policy())


class Ray:
    """A cluster of one node with two cores, which gives none of its actors a place."""

    class exceptions:  # noqa: N801  as Ray calls it
        pass

    class _private:  # noqa: N801
        class state:  # noqa: N801
            @staticmethod
            def available_resources_per_node():
                return {'node': {'CPU': 2.0}}

    def __init__(self):
        self.killed = []

    def nodes(self):
        return [{'NodeID': 'node', 'Alive': True, 'Resources': {'CPU': 2.0}}]

    def wait(self, references, timeout):
        return [], references

    def kill(self, actor):
        self.killed.append(actor)


def test_a_run_that_is_not_wanted_any_more_leaves_the_place_that_it_waits_for(registry, monkeypatch):
    launcher = RayLauncher.__new__(RayLauncher)
    launcher._registry, launcher._logger, launcher._ray, launcher._kept = registry, LOGGER, Ray(), {}
    account = registry.get_account().id
    for name in ('deleted', 'cancelled', 'wanted'):
        run, _ = registry.create_run(account, 'default', name, {})
        machines = [Machine(Resources(9), Resources(9))]
        claimed = registry.claim_run('host:1', machines)
        attempt = Attempt.of(claimed, Policy(), None)
        launcher._kept[attempt.lease] = Kept(attempt, Resources(1, 0, 1.0), name, object(), object())
        if name != 'wanted':
            registry.cancel_run(run.id, 'Cancelled by a test')
    [machine] = launcher.machines()
    assert (machine.total, machine.free) == (Resources(2, 0, 2.0), Resources(0, 0, 0.0))
    registry.delete_run(account, 'default', 'deleted')
    launcher.look()
    assert launcher._ray.killed == ['deleted', 'cancelled']
    assert [kept.actor for kept in launcher._kept.values()] == ['wanted']
    assert registry.get_run(account, 'default', 'cancelled').lease is None
    [machine] = launcher.machines()
    assert machine.free == Resources(1, 0, 1.0)


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
