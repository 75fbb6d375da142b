"""Workers on the nodes of a Ray cluster.

A detached actor on some node starts the same worker as everywhere, and is its guard: it goes on when the service is
stopped or killed, and tells the registry itself what became of the run. Ray starts nothing again: when a node is lost,
the lease of the run ends, and the queue gives it to another.
"""

from __future__ import annotations

import configparser
import dataclasses
import logging
import math
import os
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetuner import settings
from finetuner.excepts import ParameterError, RegistryError
from registry import Registry, RunRecord
from registry.queue import Machine, Resources, needed
from registry.tuning_tasks import TASK
from training.heartbeat import WITH_PARENT
from training.launchers.attempt import Attempt, Policy

ADDRESS = 'FINETUNER_RAY_ADDRESS'
REACHED = ('FINETUNER_DATABASE_URL', 'FINETUNER_OBJECTS_URL')
METHODS = 'FINETUNER_METHODS'
NAMESPACE = 'finetuner'
CPUS = 1.0
"""Of a run that does not say."""
LINGER = 60.0
"""Seconds that an actor has to be given its work, and after it to tell its service of the end."""

os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # nothing is reported to Ray's makers


class Keeper:
    """What runs on the node: an actor.

    :param environment: variables of the worker. They are not part of Ray's own, which its dashboard shows.
    :param method: the files of the fine-tuning method, if the run carries a task: nodes need not have them.
    """

    def __init__(self, attempt: dict[str, Any], environment: dict[str, str], method: dict[str, str]):
        os.environ.update(environment)
        self._method = method
        self._end = self._end_soon()
        self._attempt = Attempt(**attempt | {'policy': Policy(**attempt['policy'])})

    def is_ready(self) -> bool:
        return True

    def watch(self) -> None:
        """Start the worker, and return when the run is settled."""
        self._end.cancel()
        try:
            self._watch()
        finally:
            self._end_soon()

    def _end_soon(self) -> threading.Timer:
        """Give back what the actor has of the node, also if the service that would see to it is gone."""
        timer = threading.Timer(LINGER, os._exit, [0])
        timer.daemon = True
        timer.start()
        return timer

    def _watch(self) -> None:
        import json

        import ray

        from training.launchers.child import Child
        from training.launchers.guard import Guard, Note

        logging.basicConfig(level=logging.INFO)
        gpus = tuple(map(str, ray.get_gpu_ids()))
        attempt = dataclasses.replace(self._attempt, gpus=gpus)
        with tempfile.TemporaryDirectory(prefix='finetuner-method-') as folder, Registry.open() as registry:
            for name, content in self._method.items():
                (Path(folder) / name).write_text(content, encoding='utf-8')
            if self._method:
                os.environ[METHODS] = folder
            note = Note(registry, attempt.lease)
            worker = Child(registry, attempt)
            values = {'pid': worker.pid, 'needs': asdict(Resources()), 'attempt': asdict(attempt)}
            published = note.publish(json.dumps(values))
            Guard(registry, attempt, worker, published, logging.getLogger(__name__)).watch()


@dataclass
class Kept:
    """An actor, and what it has yet to answer."""

    attempt: Attempt
    needs: Resources
    actor: Any
    ready: Any
    end: Any


class RayLauncher:
    """Has each run worked on where Ray finds room: for its `gpus`, its `cpus` (default 1) and its `memory_limit`.

    :param address: of the cluster, `host:6379`. This machine must be one of its nodes.
    :raises ParameterError: it is a `ray://` address, or other machines could not reach the registry.
    """

    def __init__(self, registry: Registry, logger: logging.Logger, address: str, policy: Policy):
        import ray

        if address.startswith('ray://'):
            raise ParameterError(
                f'{ADDRESS} is {address!r}: Ray clients are not told what is free on the nodes. Make the machine of '
                'the trainer one of the cluster (ray start --num-cpus=0 --address=host:6379), and give host:6379'
            )
        check_reach(registry, logger)
        self._environment = worker_environment()
        self._registry, self._logger, self._policy = registry, logger, policy
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, ignore_reinit_error=True)
        self._ray = ray
        self._kept: dict[str, Kept] = {}

    def machines(self) -> list[Machine]:
        """The nodes, as they are now. What actors need that have yet to begin is taken: Ray may not tell so yet."""
        free = self._ray._private.state.available_resources_per_node()
        machines = [
            Machine(_resources(node['Resources']), _resources(free.get(node['NodeID'], {})))
            for node in self._ray.nodes()
            if node['Alive']
        ]
        for kept in self._kept.values():
            if not self._is_there(kept.ready):
                take(machines, kept.needs)
        return machines

    def launch(self, run: RunRecord) -> None:
        """Begin to work on a run that was claimed."""
        attempt = Attempt.of(run, self._policy, None)
        try:
            method = method_files(self._registry, run)
        except ValueError as error:
            self._registry.fail_run(run.id, str(error), attempt.lease)
            return
        memory = attempt.memory_limit or 0
        if memory > max((node['Resources'].get('memory', 0) for node in self._ray.nodes() if node['Alive']), default=0):
            reason = f'No node of the Ray cluster has the {memory / 1e6:.0f} MB of memory_limit'
            self._registry.fail_run(run.id, reason, attempt.lease)
            return
        cpus, gpus = attempt.cpus or CPUS, needed(run.config, self.machines()).gpus
        options = {
            'name': attempt.lease,
            'lifetime': 'detached',
            'num_cpus': cpus,
            'num_gpus': gpus,
            'memory': memory or None,
            'max_restarts': 0,
            'max_task_retries': 0,
        }
        actor: Any = self._ray.remote(Keeper).options(**options).remote(asdict(attempt), self._environment, method)
        needs = Resources(slots=math.ceil(cpus / CPUS), gpus=gpus, cpus=cpus)
        self._kept[attempt.lease] = Kept(attempt, needs, actor, actor.is_ready.remote(), actor.watch.remote())
        self._logger.info(f'run {attempt.name}: given to the Ray cluster')

    def adopt(self) -> None:
        """Those of a service that is no more tell the registry by themselves."""

    def look(self) -> None:
        """Settle the runs whose node is lost, and speak for those that have yet to find one."""
        for lease, kept in list(self._kept.items()):
            if self._has_ended(kept):
                del self._kept[lease]
            elif not self._is_there(kept.ready) and not self._is_wanted(kept):
                self._ray.kill(kept.actor)
                del self._kept[lease]
                self._registry.release_run(kept.attempt.run_id, lease)

    def run_ids(self) -> set[str]:
        return {kept.attempt.run_id for kept in self._kept.values()}

    def lost(self, lease: str) -> bool:
        """End what may be left of a worker that is silent; False, as nobody else tells the registry."""
        kept = self._kept.pop(lease, None)
        if kept is not None:
            self._ray.kill(kept.actor)
        return False

    def close(self) -> None:
        """Leave the workers to the cluster. Runs that have not found a node wait again."""
        for lease, kept in self._kept.items():
            if not self._is_there(kept.ready):
                self._ray.kill(kept.actor)
                self._retry(kept, lease, 'The service was stopped before the run had found a node', counts=False)
        self._kept.clear()

    def _is_wanted(self, kept: Kept) -> bool:
        try:
            return self._registry.heartbeat(kept.attempt.run_id, None, kept.attempt.lease)
        except RegistryError:  # the run was deleted
            return False

    def _has_ended(self, kept: Kept) -> bool:
        if not self._is_there(kept.end):
            return False
        lease = kept.attempt.lease
        try:
            self._ray.get(kept.end)
        except self._ray.exceptions.ActorUnavailableError:
            # not heard of for now: this is answered behind the watch, or when the actor is known to be dead
            kept.end = kept.actor.is_ready.remote()
            return False
        except self._ray.exceptions.RayActorError as error:
            self._retry(kept, lease, f'The node of the Ray cluster was lost: {str(error).splitlines()[0]}')
        except Exception as error:
            self._logger.exception(f'run {kept.attempt.name}: its guard failed')
            self._retry(kept, lease, f'The guard on a node of the Ray cluster failed: {str(error).splitlines()[-1]}')
        self._ray.kill(kept.actor)
        return True

    def _retry(self, kept: Kept, lease: str, reason: str, counts: bool = True) -> None:
        policy = self._policy
        status = self._registry.retry_run(
            kept.attempt.run_id,
            lease,
            reason.rstrip('.'),
            max_retries=policy.max_retries,
            delay=policy.retry_delay,
            counts=counts,
        )
        if status is not None:
            self._logger.warning(f'run {kept.attempt.name}: {status}: {reason}')
        else:
            self._registry.release_run(kept.attempt.run_id, lease)

    def _is_there(self, reference: Any) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])


def check_reach(registry: Registry, logger: logging.Logger) -> None:
    """
    :raises ParameterError: the database or the object store is one of this machine's own, by default.
    """
    for variable in REACHED:
        if not settings.secret(variable):
            raise ParameterError(
                f'{ADDRESS} is set and {variable} is not: workers on other machines need one that they reach'
            )
    if registry.database.is_sqlite:
        logger.warning('The database is a file: nodes of the Ray cluster on other machines cannot use it')
    if registry.objects.is_local:
        logger.warning('The object store is a folder: all nodes of the Ray cluster need it at the same path')
    if not os.environ.get('MLFLOW_TRACKING_URI'):
        logger.warning('MLFLOW_TRACKING_URI is not set: each node keeps to itself what it learns of iterations')


def take(machines: list[Machine], needs: Resources) -> None:
    """Count what a run needs as taken on the first machine that has it free."""
    for number, machine in enumerate(machines):
        if not machine.free.lacks(needs):
            machines[number] = Machine(machine.total, machine.free - needs)
            return


def worker_environment() -> dict[str, str]:
    """What the workers are told of where the state is, that of MLflow included. Files with secrets are read here: nodes
    do not have them.

    :raises ParameterError: the file with the keys of S3 has none.
    """
    own = {'FINETUNER_SHARE_CHECKPOINTS': '1', WITH_PARENT: '1'}
    passed = {name: value for name in REACHED if (value := settings.secret(name))}
    storage = {name: value for name, value in os.environ.items() if name.startswith(('AWS_', 'FSSPEC_', 'MLFLOW_'))}
    if file := storage.pop('AWS_SHARED_CREDENTIALS_FILE', None):
        storage = _s3_keys(file) | storage
    interval = os.environ.get('FINETUNER_CHECKPOINT_SECONDS')
    return {**storage, **passed, **own, **({'FINETUNER_CHECKPOINT_SECONDS': interval} if interval else {})}


def method_files(registry: Registry, run: RunRecord) -> dict[str, str]:
    """The method of the task that a run carries, as its files say it on this machine, by their names; none if it
    carries none.

    :raises ValueError: there is no such method, or its file is malformed.
    """
    if (task_id := run.config.get(TASK)) is None:
        return {}
    from training.methods import files_of, load_method

    return files_of(load_method(registry.tuning.get_task_by_id(task_id).method))


def _s3_keys(file: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    profile = os.environ.get('AWS_PROFILE') or 'default'
    if not parser.read(file) or not parser.has_option(profile, 'aws_secret_access_key'):
        raise ParameterError(f'AWS_SHARED_CREDENTIALS_FILE: {file} has no keys of the profile {profile!r}')
    names = ('aws_access_key_id', 'aws_secret_access_key', 'aws_session_token')
    return {name.upper(): parser.get(profile, name) for name in names if parser.has_option(profile, name)}


def _resources(values: dict[str, float]) -> Resources:
    cpus = values.get('CPU', 0.0)
    return Resources(slots=int(cpus / CPUS), gpus=int(values.get('GPU', 0)), cpus=cpus)
