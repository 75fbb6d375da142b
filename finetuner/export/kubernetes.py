"""Kubernetes manifests of a deployment: which files there are, and what is in each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from finetuner.export.kubernetes_names import CONFIG, PREFIX, SECRETS, Cluster, Manifest, claim, labels, manifest
from finetuner.export.kubernetes_network import ingress, network_policies, service
from finetuner.export.kubernetes_pods import disruption_budget, workload
from finetuner.export.kubernetes_postgres import postgres
from finetuner.export.parts import SHARED, Deployment, Part

SECRET_FILE = 'secret.yaml'
OTHER_FILES = {'namespace', 'config', 'volumes', 'secret', 'network-policies', 'ingress', 'kustomization'}
"""Files, without `.yaml`, that are not of a part: whether this export has them or another one."""


def manifests(deployment: Deployment, cluster: Cluster) -> dict[str, list[Manifest]]:
    """The manifests by the name of their file.

    :raises ValueError: an executor would have the file of something else.
    """
    if taken := sorted(OTHER_FILES & {part.name for part in deployment.executors}):
        raise ValueError(
            f'{taken[0]}.yaml is another file of the export than that of an executor: give the executor {taken[0]!r} '
            'another name'
        )
    config = manifest('v1', 'ConfigMap', CONFIG, cluster, data=dict(deployment.environment))
    files = {'namespace.yaml': [_namespace(cluster)], 'config.yaml': [config]}
    if claims := _claims(deployment, cluster):
        files['volumes.yaml'] = claims
    if deployment.options.own_postgres:
        files['postgres.yaml'] = postgres(cluster)
    for part in deployment.parts:
        files[f'{part.name}.yaml'] = _part(part, deployment, cluster)
    files['network-policies.yaml'] = network_policies(deployment, cluster)
    if cluster.ingress_host:
        files['ingress.yaml'] = [ingress(deployment, cluster)]
    return files


def secret_manifest(values: Mapping[str, str], cluster: Cluster) -> Manifest:
    return manifest('v1', 'Secret', SECRETS, cluster, type='Opaque', stringData=dict(values))


def read_secret(path: Path) -> Manifest | None:
    """The Secret of an earlier export, None if there is none.

    :raises ValueError: it is no longer what an export writes.
    """
    if not path.exists():
        return None
    try:
        found = yaml.safe_load(path.read_text(encoding='utf-8'))
        namespace, values = found['metadata']['namespace'], found['stringData']
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        namespace, values = None, None
    if not isinstance(namespace, str) or not isinstance(values, dict):
        raise ValueError(f'{path} is not the Secret that an export wrote: move it away, or mend it')
    return dict(found)


def kustomization(files: list[str]) -> Manifest:
    """`kubectl apply -k` applies the files in it, and is where one's own changes go."""
    return {'apiVersion': 'kustomize.config.k8s.io/v1beta1', 'kind': 'Kustomization', 'resources': files}


def _part(part: Part, deployment: Deployment, cluster: Cluster) -> list[Manifest]:
    return [
        service(part, cluster, deployment.options.tls),
        workload(part, deployment, cluster),
        disruption_budget(part, cluster),
    ]


def _namespace(cluster: Cluster) -> Manifest:
    security = {'pod-security.kubernetes.io/enforce': 'restricted'}
    metadata = {'name': cluster.namespace, 'labels': {**labels(), **security}}
    return {'apiVersion': 'v1', 'kind': 'Namespace', 'metadata': metadata}


def _claims(deployment: Deployment, cluster: Cluster) -> list[Manifest]:
    shared = {volume.name for part in deployment.executors for volume in part.volumes if volume.kind == SHARED}
    mode = 'ReadWriteMany' if deployment.options.shared_volume else 'ReadWriteOnce'
    return [
        manifest('v1', 'PersistentVolumeClaim', PREFIX + name, cluster, spec=claim(cluster, mode, cluster.volume_size))
        for name in sorted(shared)
    ]
