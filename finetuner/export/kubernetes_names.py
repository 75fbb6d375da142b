"""Names and labels of Kubernetes objects."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from finetuner.export.options import Options

Manifest = dict[str, Any]
PREFIX = 'finetuner-'
SECRETS = f'{PREFIX}secrets'
BROUGHT = {'s3-credentials': f'{PREFIX}s3', 'tls.crt': f'{PREFIX}tls', 'tls.key': f'{PREFIX}tls'}
"""The Secrets, by key, of what cannot be made up here."""
CONFIG = f'{PREFIX}config'
# pods that may ask the database
CLIENT_LABEL = {'finetuner.database/client': 'true'}


@dataclass(frozen=True)
class Cluster:
    """What is chosen for Kubernetes alone.

    :param storage_class: of all volumes, default the cluster's.
    :param volume_size: of each volume that holds state.
    :param scratch_size: of each volume that holds what can be had again: copies, caches, checkpoints.
    :param ingress_host: the name under which the HTTP port is to be reached from outside.
    """

    namespace: str = 'finetuner'
    storage_class: str | None = None
    volume_size: str = '50Gi'
    scratch_size: str = '20Gi'
    ingress_host: str | None = None
    ingress_class: str | None = None


NAME = re.compile(r'[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?')
HOST = re.compile(r'[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?')
UNITS = {'Mi': 2**20, 'Gi': 2**30, 'Ti': 2**40, 'M': 10**6, 'G': 10**9, 'T': 10**12}
SIZE = re.compile(rf'([1-9][0-9]*)({"|".join(UNITS)})')


def check_cluster(cluster: Cluster) -> None:
    """
    :raises ValueError: something of it cannot be a name, or a size.
    """
    for option, value, form in (
        ('namespace', cluster.namespace, NAME),
        ('storage-class', cluster.storage_class, HOST),
        ('volume-size', cluster.volume_size, SIZE),
        ('scratch-size', cluster.scratch_size, SIZE),
        ('ingress-host', cluster.ingress_host, HOST),
        ('ingress-class', cluster.ingress_class, HOST),
    ):
        if value is not None and not form.fullmatch(value):
            kind = 'a size such as 50Gi' if form is SIZE else 'a name of Kubernetes (a to z, digits and "-")'
            raise ValueError(f'--{option} {value!r} is not {kind}')
    if cluster.ingress_class and not cluster.ingress_host:
        raise ValueError('--ingress-class is for an Ingress: add --ingress-host')


def selector(component: str) -> dict[str, str]:
    return {'app.kubernetes.io/name': 'finetuner', 'app.kubernetes.io/component': component}


def labels(component: str | None = None) -> dict[str, str]:
    own = selector(component) if component else {'app.kubernetes.io/name': 'finetuner'}
    return {**own, 'app.kubernetes.io/part-of': 'finetuner', 'app.kubernetes.io/managed-by': 'finetuner-export'}


def manifest(api: str, kind: str, name: str, cluster: Cluster, component: str | None = None, **fields: Any) -> Manifest:
    metadata = {'name': name, 'namespace': cluster.namespace, 'labels': labels(component)}
    return {'apiVersion': api, 'kind': kind, 'metadata': metadata, **fields}


def bytes_of(size: str) -> int:
    """A checked size in bytes."""
    number, unit = SIZE.fullmatch(size).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def claim(cluster: Cluster, mode: str, size: str) -> dict[str, Any]:
    """What is asked of a volume."""
    spec: dict[str, Any] = {'accessModes': [mode], 'resources': {'requests': {'storage': size}}}
    if cluster.storage_class:
        spec['storageClassName'] = cluster.storage_class
    return spec


def secret_of(key: str, options: Options) -> str:
    """The name of the Secret that has a key."""
    if key == 'database-url' and options.database_url_secret:
        return options.database_url_secret
    return BROUGHT.get(key, SECRETS)
