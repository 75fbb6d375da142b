"""The pods of the gateway and the executors, and what keeps them running."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetuner.export.kubernetes_names import (
    CLIENT_LABEL,
    CONFIG,
    PREFIX,
    Cluster,
    Manifest,
    bytes_of,
    claim,
    labels,
    manifest,
    secret_of,
    selector,
)
from finetuner.export.parts import (
    GRPC_PORT,
    HEALTH_SERVICE,
    HOME,
    HTTP_PORT,
    MEMORY,
    OWN,
    SCRATCH,
    SHARED,
    STARTUP_SECONDS,
    USER,
    Deployment,
    Part,
    Volume,
)
from finetuner.export.parts import SECRETS as SECRETS_FOLDER

# what is asked for, by role: docs/operations.md says what of it was measured
REQUESTS = {
    'gateway': {'cpu': '250m', 'memory': '512Mi', 'ephemeral-storage': '100Mi'},
    'dataset': {'cpu': '250m', 'memory': '1Gi', 'ephemeral-storage': '1Gi'},
    'clicks': {'cpu': '250m', 'memory': '1Gi', 'ephemeral-storage': '100Mi'},
    'trainer': {'cpu': '2', 'memory': '4Gi', 'ephemeral-storage': '1Gi'},
    'search': {'cpu': '1', 'memory': '2Gi', 'ephemeral-storage': '1Gi'},
    'encoder': {'cpu': '1', 'memory': '2Gi', 'ephemeral-storage': '4Gi'},
}
GATEWAY_TMP = '1Gi'
CACHE_SHARE = 6
"""Which part of its volume a cache may fill: there are three of artifacts, and one of features."""
LEAVE_SECONDS = 5
"""How long a pod that is to end still takes requests, until all know that it is to end."""


def container_security() -> dict[str, Any]:
    return {
        'allowPrivilegeEscalation': False,
        'readOnlyRootFilesystem': True,
        'capabilities': {'drop': ['ALL']},
    }


def pod_security(user: int) -> dict[str, Any]:
    return {
        'runAsNonRoot': True,
        'runAsUser': user,
        'runAsGroup': user,
        'fsGroup': user,
        'fsGroupChangePolicy': 'OnRootMismatch',
        'seccompProfile': {'type': 'RuntimeDefault'},
    }


def workload(part: Part, deployment: Deployment, cluster: Cluster) -> Manifest:
    """A StatefulSet where replicas have volumes of their own, else a Deployment."""
    own = [volume for volume in part.volumes if volume.kind == OWN]
    spec: dict[str, Any] = {
        'replicas': part.replicas,
        'selector': {'matchLabels': selector(part.name)},
        'template': _pod(part, deployment, cluster),
    }
    name = PREFIX + part.name
    if own:
        claims = [
            {
                'metadata': {'name': volume.name, 'labels': labels(part.name)},
                'spec': claim(cluster, 'ReadWriteOnce', cluster.scratch_size),
            }
            for volume in own
        ]
        spec |= {
            'serviceName': name,
            'podManagementPolicy': 'Parallel',
            'updateStrategy': {'type': 'RollingUpdate'},
            'volumeClaimTemplates': claims,
        }
        return manifest('apps/v1', 'StatefulSet', name, cluster, part.name, spec=spec)
    spec |= {'strategy': _strategy(part), 'progressDeadlineSeconds': STARTUP_SECONDS + 300}
    return manifest('apps/v1', 'Deployment', name, cluster, part.name, spec=spec)


def disruption_budget(part: Part, cluster: Cluster) -> Manifest:
    spec = {'maxUnavailable': 1, 'selector': {'matchLabels': selector(part.name)}}
    return manifest('policy/v1', 'PodDisruptionBudget', PREFIX + part.name, cluster, part.name, spec=spec)


def _strategy(part: Part) -> dict[str, Any]:
    # one shares a database file with its successor, the other an index that knows of its own changes alone
    if part.role in ('trainer', 'search'):
        return {'type': 'Recreate'}
    # the old pod holds the GPU that the new one waits for
    at_once = {'maxUnavailable': 1, 'maxSurge': 0} if part.gpus else {'maxUnavailable': 0, 'maxSurge': 1}
    return {'type': 'RollingUpdate', 'rollingUpdate': at_once}


def _pod(part: Part, deployment: Deployment, cluster: Cluster) -> dict[str, Any]:
    pod: dict[str, Any] = {
        'automountServiceAccountToken': False,
        'enableServiceLinks': False,
        # the first process of the pod is not ours: ended children are reaped, and a SIGTERM works at once
        'shareProcessNamespace': True,
        'terminationGracePeriodSeconds': part.grace + LEAVE_SECONDS,
        'securityContext': pod_security(USER),
        'containers': [_container(part, deployment, cluster)],
        'volumes': _volumes(part, deployment, cluster),
    }
    shared = [volume for volume in part.volumes if volume.kind == SHARED]
    if shared and not deployment.options.shared_volume:
        pod['affinity'] = _affinity(shared)
    if part.replicas > 1:
        spread = {
            'maxSkew': 1,
            'topologyKey': 'kubernetes.io/hostname',
            'whenUnsatisfiable': 'ScheduleAnyway',
            'labelSelector': {'matchLabels': selector(part.name)},
        }
        pod['topologySpreadConstraints'] = [spread]
    own = {_volume_label(volume): 'true' for volume in shared}
    if deployment.options.own_postgres and 'database-url' in part.secrets:
        own |= CLIENT_LABEL
    metadata = {
        'labels': {**labels(part.name), **own},
        'annotations': {'finetuner/config': _digest(deployment.environment)},  # a new one rolls the pods
    }
    return {'metadata': metadata, 'spec': pod}


def _container(part: Part, deployment: Deployment, cluster: Cluster) -> dict[str, Any]:
    requests, limits = dict(REQUESTS[part.role]), {'memory': f'{MEMORY[part.role]}Gi'}
    environment = {**_cache_limits(part, cluster), **part.environment}
    if part.gpus:
        requests['nvidia.com/gpu'] = limits['nvidia.com/gpu'] = str(part.gpus)
    ports = [{'name': 'grpc', 'containerPort': GRPC_PORT}]
    if part.role == 'gateway':
        ports.append({'name': 'http', 'containerPort': HTTP_PORT})
    mounts: list[dict[str, Any]] = [{'name': 'tmp', 'mountPath': '/tmp'}]
    mounts += [{'name': volume.name, 'mountPath': volume.path} for volume in part.volumes]
    if part.secrets:
        mounts.append({'name': 'secrets', 'mountPath': SECRETS_FOLDER, 'readOnly': True})
    if part.role == 'trainer':
        mounts.append({'name': 'shm', 'mountPath': '/dev/shm'})
    return {
        'name': part.name,
        'image': part.image,
        'imagePullPolicy': 'IfNotPresent',
        'command': ['jina'],
        'args': list(part.arguments),
        'envFrom': [{'configMapRef': {'name': CONFIG}}],
        'env': [{'name': name, 'value': value} for name, value in environment.items()],
        'ports': ports,
        **_probes(part, deployment),
        'lifecycle': {'preStop': {'exec': {'command': ['sleep', str(LEAVE_SECONDS)]}}},
        'resources': {'requests': requests, 'limits': limits},
        'securityContext': container_security(),
        'volumeMounts': mounts,
    }


def _cache_limits(part: Part, cluster: Cluster) -> dict[str, str]:
    """The variables that keep the caches of a part below what its home has room for."""
    for volume in part.volumes:
        if volume.path == HOME:
            size = bytes_of(cluster.volume_size if volume.kind == SHARED else cluster.scratch_size) // CACHE_SHARE
            names = ['FINETUNER_ARTIFACT_CACHE_BYTES']
            names += ['FINETUNER_FEATURE_CACHE_BYTES'] if part.role == 'trainer' else []
            return {name: str(size) for name in names}
    return {}


def _probes(part: Part, deployment: Deployment) -> dict[str, Any]:
    asked = {'grpc': {'port': GRPC_PORT, 'service': HEALTH_SERVICE}}
    if part.role == 'gateway':
        scheme = 'HTTPS' if deployment.options.tls else 'HTTP'
        # not /health/ready: an executor that is away would take the others' requests away, too
        asked = {'httpGet': {'path': '/health/live', 'port': 'http', 'scheme': scheme}}
    return {
        'startupProbe': {**asked, 'periodSeconds': 5, 'timeoutSeconds': 5, 'failureThreshold': STARTUP_SECONDS // 5},
        'readinessProbe': {**asked, 'periodSeconds': 5, 'timeoutSeconds': 5, 'failureThreshold': 2},
        'livenessProbe': {**asked, 'periodSeconds': 10, 'timeoutSeconds': 10, 'failureThreshold': 6},
    }


def _volumes(part: Part, deployment: Deployment, cluster: Cluster) -> list[dict[str, Any]]:
    # files on their way into a data set may be as large as one
    tmp = GATEWAY_TMP if part.role == 'gateway' else cluster.scratch_size
    volumes: list[dict[str, Any]] = [{'name': 'tmp', 'emptyDir': {'sizeLimit': tmp}}]
    for volume in part.volumes:
        if volume.kind == SHARED:
            volumes.append({'name': volume.name, 'persistentVolumeClaim': {'claimName': PREFIX + volume.name}})
        if volume.kind == SCRATCH:
            volumes.append({'name': volume.name, 'emptyDir': {'sizeLimit': cluster.scratch_size}})
    if part.secrets:
        projected = {'sources': _secret_sources(part, deployment), 'defaultMode': 0o440}
        volumes.append({'name': 'secrets', 'projected': projected})
    if part.role == 'trainer':  # by which the processes that load data hand it over
        volumes.append({'name': 'shm', 'emptyDir': {'medium': 'Memory', 'sizeLimit': '2Gi'}})
    return volumes


def _secret_sources(part: Part, deployment: Deployment) -> list[dict[str, Any]]:
    keys: dict[str, list[str]] = {}
    for key in part.secrets:
        keys.setdefault(secret_of(key, deployment.options), []).append(key)
    return [
        {'secret': {'name': name, 'items': [{'key': key, 'path': key} for key in items]}}
        for name, items in keys.items()
    ]


def _affinity(volumes: Sequence[Volume]) -> dict[str, Any]:
    """Pods that share a volume which one machine at a time can mount must be on one machine.

    The first of them may be anywhere: it is the one that it has to be near.
    """
    near = [
        {'labelSelector': {'matchLabels': {_volume_label(volume): 'true'}}, 'topologyKey': 'kubernetes.io/hostname'}
        for volume in volumes
    ]
    return {'podAffinity': {'requiredDuringSchedulingIgnoredDuringExecution': near}}


def _volume_label(volume: Volume) -> str:
    return f'finetuner.volume/{volume.name}'


def _digest(environment: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:16]
