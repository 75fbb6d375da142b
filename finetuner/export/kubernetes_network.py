"""How the parts are reached in Kubernetes, and by whom."""

from __future__ import annotations

from typing import Any

from finetuner.export.kubernetes_names import BROUGHT, CLIENT_LABEL, PREFIX, Cluster, Manifest, manifest, selector
from finetuner.export.parts import GRPC_PORT, HTTP_PORT, Deployment, Part

NGINX = 'nginx.ingress.kubernetes.io'
MAX_BODY = str(64 << 20)
"""Bytes of a request, which is the gateway's limit where its environment names none."""


def service(part: Part, cluster: Cluster, tls: bool) -> Manifest:
    """The gateway has one address. The name of an executor means all its pods: the gateway itself takes turns.

    :param tls: the gateway speaks TLS.
    """
    grpc = {'name': 'grpc', 'port': GRPC_PORT, 'targetPort': 'grpc'}
    if part.role != 'gateway' or not tls:
        grpc['appProtocol'] = 'kubernetes.io/h2c'
    spec: dict[str, Any] = {'selector': selector(part.name), 'ports': [grpc]}
    if part.role == 'gateway':
        spec['ports'].append({'name': 'http', 'port': HTTP_PORT, 'targetPort': 'http'})
    else:
        spec['clusterIP'] = 'None'
    return manifest('v1', 'Service', PREFIX + part.name, cluster, part.name, spec=spec)


def network_policies(deployment: Deployment, cluster: Cluster) -> list[Manifest]:
    """Anyone may ask the gateway; it alone may ask the executors, which take requests that nobody has looked at."""
    policies = [_policy(deployment.gateway.name, None, (GRPC_PORT, HTTP_PORT), cluster)]
    callers = {'matchLabels': selector(deployment.gateway.name)}
    policies += [_policy(part.name, callers, (GRPC_PORT,), cluster) for part in deployment.executors]
    if deployment.options.own_postgres:
        policies.append(_policy('postgres', {'matchLabels': CLIENT_LABEL}, (5432,), cluster))
    return policies


def ingress(deployment: Deployment, cluster: Cluster) -> Manifest:
    """The HTTP side, which the client speaks too. How gRPC passes an Ingress differs from one controller to another."""
    backend = {'service': {'name': PREFIX + 'gateway', 'port': {'name': 'http'}}}
    rule = {'host': cluster.ingress_host, 'http': {'paths': [{'path': '/', 'pathType': 'Prefix', 'backend': backend}]}}
    spec: dict[str, Any] = {'rules': [rule]}
    if cluster.ingress_class:
        spec['ingressClassName'] = cluster.ingress_class
    if deployment.options.tls:
        spec['tls'] = [{'hosts': [cluster.ingress_host], 'secretName': BROUGHT['tls.crt']}]
    made = manifest('networking.k8s.io/v1', 'Ingress', PREFIX + 'gateway', cluster, 'gateway', spec=spec)
    # of ingress-nginx, which would cut off bodies of 1 MiB and answers that are silent for a minute, hold logs back
    # and speak plain HTTP; others do not read them
    annotations = {
        f'{NGINX}/proxy-body-size': deployment.gateway.environment.get('FINETUNER_MAX_BODY_BYTES') or MAX_BODY,
        f'{NGINX}/proxy-read-timeout': '3600',
        f'{NGINX}/proxy-send-timeout': '3600',
        f'{NGINX}/proxy-buffering': 'off',
    }
    if deployment.options.tls:
        annotations[f'{NGINX}/backend-protocol'] = 'HTTPS'
    made['metadata']['annotations'] = annotations
    return made


def _policy(component: str, callers: dict[str, Any] | None, ports: tuple[int, ...], cluster: Cluster) -> Manifest:
    rule: dict[str, Any] = {'ports': [{'protocol': 'TCP', 'port': port} for port in ports]}
    if callers:
        rule['from'] = [{'podSelector': callers}]
    spec = {'podSelector': {'matchLabels': selector(component)}, 'policyTypes': ['Ingress'], 'ingress': [rule]}
    return manifest('networking.k8s.io/v1', 'NetworkPolicy', PREFIX + component, cluster, component, spec=spec)
