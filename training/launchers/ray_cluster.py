"""Workers on the nodes of a Ray cluster.

A detached actor on some node starts the same worker as everywhere, and is its guard: it goes on when the service is
stopped or killed, and tells the registry itself what became of the run. Ray starts nothing again: when a node is lost,
the lease of the run ends, and the queue gives it to another.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import asdict, dataclass
from typing import Any

from finetuner.excepts import ParameterError
from registry import Registry, RunRecord
from registry.queue import Machine, Resources, needed
from training.heartbeat import WITH_PARENT
from training.launchers.attempt import Attempt, Policy

ADDRESS = 'FINETUNER_RAY_ADDRESS'
REACHED = ('FINETUNER_DATABASE_URL', 'FINETUNER_OBJECTS_URL')
NAMESPACE = 'finetuner'
CPUS = 1.0
"""Of a run that does not say."""

os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # nothing is reported to Ray's makers


class Keeper:
    """What runs on the node: an actor.

    :param environment: variables of the worker. They are not part of Ray's own, which its dashboard shows.
    """

    def __init__(self, attempt: dict[str, Any], environment: dict[str, str]):
        os.environ.update(environment)
        self._attempt = Attempt(**attempt | {'policy': Policy(**attempt['policy'])})

    def is_ready(self) -> bool:
        return True

    def watch(self) -> None:
        """Start the worker, and return when the run is settled."""
        import json

        import ray

        from training.launchers.child import Child
        from training.launchers.guard import Guard, Note

        logging.basicConfig(level=logging.INFO)
        gpus = tuple(map(str, ray.get_gpu_ids()))
        attempt = dataclasses.replace(self._attempt, gpus=gpus)
        with Registry.open() as registry:
            note = Note(registry, attempt.lease)
            worker = Child(registry, attempt)
            values = {'pid': worker.pid, 'needs': asdict(Resources()), 'attempt': asdict(attempt)}
            published = note.publish(json.dumps(values))
            Guard(registry, attempt, worker, published, logging.getLogger(__name__)).watch()


@dataclass
class Kept:
    """An actor, and what it has yet to answer."""

    attempt: Attempt
    actor: Any
    ready: Any
    end: Any


class RayLauncher:
    """Has each run worked on where Ray finds room: for its `gpus`, its `cpus` (default 1) and its `memory_limit`.

    :param address: of the cluster: `host:6379` from one of its machines, or `ray://host:10001` from elsewhere.
    :raises ParameterError: other machines could not reach the registry.
    """

    def __init__(self, registry: Registry, logger: logging.Logger, address: str, policy: Policy):
        import ray

        check_reach(registry, logger)
        self._registry, self._logger, self._policy = registry, logger, policy
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, ignore_reinit_error=True)
        self._ray = ray
        self._kept: dict[str, Kept] = {}

    def machines(self) -> list[Machine]:
        """The nodes, as they are now."""
        free = self._ray._private.state.available_resources_per_node()
        return [
            Machine(_resources(node['Resources']), _resources(free.get(node['NodeID'], {})))
            for node in self._ray.nodes()
            if node['Alive']
        ]

    def launch(self, run: RunRecord) -> None:
        """Begin to work on a run that was claimed."""
        attempt = Attempt.of(run, self._policy, None)
        memory = attempt.memory_limit or 0
        if memory > max((node['Resources'].get('memory', 0) for node in self._ray.nodes() if node['Alive']), default=0):
            reason = f'No node of the Ray cluster has the {memory / 1e6:.0f} MB of memory_limit'
            self._registry.fail_run(run.id, reason, attempt.lease)
            return
        options = {
            'name': attempt.lease,
            'lifetime': 'detached',
            'num_cpus': attempt.cpus or CPUS,
            'num_gpus': needed(run.config, self.machines()).gpus,
            'memory': memory or None,
            'max_restarts': 0,
            'max_task_retries': 0,
        }
        actor: Any = self._ray.remote(Keeper).options(**options).remote(asdict(attempt), _environment())
        self._kept[attempt.lease] = Kept(attempt, actor, actor.is_ready.remote(), actor.watch.remote())
        self._logger.info(f'run {attempt.name}: given to the Ray cluster')

    def adopt(self) -> None:
        """Those of a service that is no more tell the registry by themselves."""

    def look(self) -> None:
        """Settle the runs whose node is lost, and speak for those that have yet to find one."""
        for lease, kept in list(self._kept.items()):
            if self._has_ended(kept):
                del self._kept[lease]
            elif not self._is_there(kept.ready):
                self._registry.heartbeat(kept.attempt.run_id, None, lease)

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
        if not os.environ.get(variable):
            raise ParameterError(
                f'{ADDRESS} is set and {variable} is not: workers on other machines need one that they reach'
            )
    if registry.database.is_sqlite:
        logger.warning('The database is a file: nodes of the Ray cluster on other machines cannot use it')
    if registry.objects.is_local:
        logger.warning('The object store is a folder: all nodes of the Ray cluster need it at the same path')


def _environment() -> dict[str, str]:
    own = {'FINETUNER_SHARE_CHECKPOINTS': '1', WITH_PARENT: '1'}
    passed = {name: value for name in REACHED if (value := os.environ.get(name))}
    storage = {name: value for name, value in os.environ.items() if name.startswith(('AWS_', 'FSSPEC_'))}
    interval = os.environ.get('FINETUNER_CHECKPOINT_SECONDS')
    return {**storage, **passed, **own, **({'FINETUNER_CHECKPOINT_SECONDS': interval} if interval else {})}


def _resources(values: dict[str, float]) -> Resources:
    cpus = values.get('CPU', 0.0)
    return Resources(slots=int(cpus / CPUS), gpus=int(values.get('GPU', 0)), cpus=cpus)
