"""A PostgreSQL server with one volume, for those who have none."""

from __future__ import annotations

from finetuner.export.compose import POSTGRES_DATA, POSTGRES_IMAGE
from finetuner.export.kubernetes_names import PREFIX, SECRETS, Cluster, Manifest, claim, labels, manifest, selector
from finetuner.export.kubernetes_pods import container_security, pod_security
from finetuner.export.parts import MEMORY, POSTGRES, secret
from finetuner.export.parts import SECRETS as SECRETS_FOLDER

NAME = f'{PREFIX}postgres'
USER = 999
"""Of the image."""


def postgres(cluster: Cluster) -> list[Manifest]:
    port = {'name': 'postgres', 'port': 5432, 'targetPort': 'postgres'}
    service = {'selector': selector('postgres'), 'ports': [port], 'clusterIP': 'None'}
    spec = {
        'replicas': 1,
        'serviceName': NAME,
        'selector': {'matchLabels': selector('postgres')},
        'template': {'metadata': {'labels': labels('postgres')}, 'spec': _pod()},
        'volumeClaimTemplates': [
            {
                'metadata': {'name': 'data', 'labels': labels('postgres')},
                'spec': claim(cluster, 'ReadWriteOnce', cluster.volume_size),
            }
        ],
    }
    return [
        manifest('v1', 'Service', NAME, cluster, 'postgres', spec=service),
        manifest('apps/v1', 'StatefulSet', NAME, cluster, 'postgres', spec=spec),
    ]


def _pod() -> Manifest:
    asked = {'exec': {'command': ['pg_isready', '--username', 'finetuner', '--dbname', 'finetuner']}}
    container = {
        'name': 'postgres',
        'image': POSTGRES_IMAGE,
        'imagePullPolicy': 'IfNotPresent',
        'env': [
            {'name': 'POSTGRES_USER', 'value': 'finetuner'},
            {'name': 'POSTGRES_DB', 'value': 'finetuner'},
            {'name': 'POSTGRES_PASSWORD_FILE', 'value': secret('postgres-password')},
            {'name': 'PGDATA', 'value': f'{POSTGRES_DATA}/pgdata'},  # a volume's root may hold other things
        ],
        'ports': [{'name': 'postgres', 'containerPort': 5432}],
        'startupProbe': {**asked, 'periodSeconds': 2, 'timeoutSeconds': 5, 'failureThreshold': 150},
        'readinessProbe': {**asked, 'periodSeconds': 5, 'timeoutSeconds': 5},
        'livenessProbe': {**asked, 'periodSeconds': 10, 'timeoutSeconds': 10, 'failureThreshold': 6},
        'resources': {
            'requests': {'cpu': '250m', 'memory': '256Mi', 'ephemeral-storage': '100Mi'},
            'limits': {'memory': f'{MEMORY[POSTGRES]}Gi'},
        },
        'securityContext': container_security(),
        'volumeMounts': [
            {'name': 'data', 'mountPath': POSTGRES_DATA},
            {'name': 'run', 'mountPath': '/var/run/postgresql'},
            {'name': 'tmp', 'mountPath': '/tmp'},
            {'name': 'secrets', 'mountPath': SECRETS_FOLDER, 'readOnly': True},
        ],
    }
    item = {'key': 'postgres-password', 'path': 'postgres-password'}
    return {
        'automountServiceAccountToken': False,
        'enableServiceLinks': False,
        'terminationGracePeriodSeconds': 60,
        'securityContext': pod_security(USER),
        'containers': [container],
        'volumes': [
            {'name': 'run', 'emptyDir': {'sizeLimit': '64Mi'}},
            {'name': 'tmp', 'emptyDir': {'sizeLimit': '1Gi'}},
            {
                'name': 'secrets',
                'projected': {'sources': [{'secret': {'name': SECRETS, 'items': [item]}}], 'defaultMode': 0o440},
            },
        ],
    }
