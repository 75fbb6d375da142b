"""A docker-compose file of a deployment, after https://compose-spec.io."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from itertools import count, islice
from typing import Any

from finetuner.export.parts import (
    GRPC_PORT,
    HTTP_PORT,
    MEMORY,
    POSTGRES,
    SHARED,
    STARTUP_SECONDS,
    USER,
    Deployment,
    Part,
    Volume,
    secret,
)

POSTGRES_IMAGE = 'postgres:17'
POSTGRES_DATA = '/var/lib/postgresql/data'
# of each container; by itself Docker keeps all that was ever printed
LOGGING = {'driver': 'json-file', 'options': {'max-size': '20m', 'max-file': '5'}}


def compose_file(deployment: Deployment, publish: str, port: int, http_port: int) -> dict[str, Any]:
    """The content of the file.

    :param publish: the address of this machine where the ports are to be.
    :param port: of gRPC, `http_port` of HTTP.
    :raises ValueError: `publish` is no address, or an executor has the name of another one's replica.
    """
    try:
        address = f'[{publish}]' if ip_address(publish).version == 6 else publish
    except ValueError:
        raise ValueError(f'--publish {publish!r} is no address of a machine, such as 127.0.0.1 or 0.0.0.0') from None
    gpus = gpus_by_service(deployment)
    names = {part.name: _service_names(part) for part in deployment.parts}
    _check_names(names)
    services = {
        name: _service(part, name, gpus.get(name, ()), deployment)
        for part in deployment.parts
        for name in names[part.name]
    }
    services['gateway']['ports'] = [f'{address}:{port}:{GRPC_PORT}', f'{address}:{http_port}:{HTTP_PORT}']
    services['gateway']['depends_on'] = {
        name: {'condition': 'service_healthy', 'restart': False}
        for part in deployment.executors
        for name in names[part.name]
    }
    if deployment.options.own_postgres:
        services[POSTGRES] = _postgres()
    volumes = [volume for service in services.values() for volume in service.get('volumes', ())]
    sources = dict.fromkeys(volume['source'] for volume in volumes if volume['type'] == 'volume')
    content: dict[str, Any] = {'name': 'finetuner', 'services': _escape(services)}
    if sources:
        content['volumes'] = {source: {} for source in sources}
    content['secrets'] = {key: {'file': _secret_file(key, deployment)} for key in deployment.secrets}
    return content


def gpus_by_service(deployment: Deployment) -> dict[str, tuple[str, ...]]:
    """The numbers of the GPUs of the machine that each service has to itself, those of trainers first."""
    parts = sorted((part for part in deployment.executors if part.gpus), key=lambda part: part.role != 'trainer')
    free = map(str, count())
    return {name: tuple(islice(free, part.gpus)) for part in parts for name in _service_names(part)}


def _service_names(part: Part) -> list[str]:
    """One for all replicas, or one for each where they differ: by their GPUs."""
    if part.gpus and part.replicas > 1:
        return [f'{part.name}-{number}' for number in range(1, part.replicas + 1)]
    return [part.name]


def _check_names(names: Mapping[str, Sequence[str]]) -> None:
    for part, replicas in names.items():
        if taken := sorted((names.keys() - {part}) & set(replicas)):
            raise ValueError(
                f'the executor {taken[0]!r} has the name of a replica of {part!r}: give it another in the Flow file'
            )


def _service(part: Part, name: str, gpus: Sequence[str], deployment: Deployment) -> dict[str, Any]:
    service: dict[str, Any] = {
        'image': part.image,
        'entrypoint': ['jina'],
        'command': list(part.arguments),
        'environment': {**deployment.environment, **part.environment},
        'user': f'{USER}:{USER}',
        'init': True,  # a SIGTERM ends the process before it has set up its handler, too
        'read_only': True,
        'tmpfs': ['/tmp:exec'],  # compiled kernels are loaded from there
        'cap_drop': ['ALL'],
        'security_opt': ['no-new-privileges:true'],
        'restart': 'unless-stopped',
        'stop_grace_period': f'{part.grace}s',
        'healthcheck': _health(part, deployment),
    }
    if part.secrets:
        service['secrets'] = [{'source': key, 'target': secret(key)} for key in part.secrets]
    if part.volumes:
        service['volumes'] = [_mount(volume, part) for volume in part.volumes]
    if part.role == 'trainer':
        service['shm_size'] = '2gb'  # by which the processes that load data hand it over
    if 'database-url' in part.secrets and deployment.options.own_postgres:
        service['depends_on'] = {POSTGRES: {'condition': 'service_healthy', 'restart': False}}
    if name != part.name:
        service['networks'] = {'default': {'aliases': [part.name]}}  # by which the gateway finds all replicas
    service['deploy'] = _deploy(1 if name != part.name else part.replicas, part.role, gpus)
    service['logging'] = LOGGING
    return service


def _health(part: Part, deployment: Deployment) -> dict[str, Any]:
    scheme = 'https' if deployment.options.tls else 'http'
    asked = f'{scheme}://127.0.0.1:{HTTP_PORT}/health/ready' if part.role == 'gateway' else str(GRPC_PORT)
    return {
        'test': ['CMD', 'python', '-m', 'executors.health', asked],
        'interval': '10s',
        'timeout': '10s',
        'retries': 6,
        'start_period': f'{STARTUP_SECONDS}s',
        'start_interval': '2s',
    }


def _mount(volume: Volume, part: Part) -> dict[str, Any]:
    source = volume.name if volume.kind == SHARED else f'{part.name}-{volume.name}'
    return {'type': 'volume', 'source': source, 'target': volume.path}


def _deploy(replicas: int, role: str, gpus: Sequence[str]) -> dict[str, Any]:
    deploy: dict[str, Any] = {}
    if replicas > 1:
        deploy['replicas'] = replicas
    deploy['resources'] = _limits(role)
    if gpus:
        # not by their number: Docker gives everyone who asks for one the first of the machine
        device = {'driver': 'nvidia', 'device_ids': list(gpus), 'capabilities': ['gpu']}
        deploy['resources']['reservations'] = {'devices': [device]}
    return deploy


def _limits(role: str) -> dict[str, Any]:
    return {'limits': {'memory': f'{MEMORY[role]}g'}}


def _postgres() -> dict[str, Any]:
    return {
        'image': POSTGRES_IMAGE,
        'environment': {
            'POSTGRES_USER': 'finetuner',
            'POSTGRES_DB': 'finetuner',
            'POSTGRES_PASSWORD_FILE': secret('postgres-password'),
        },
        'secrets': [{'source': 'postgres-password', 'target': secret('postgres-password')}],
        'volumes': [{'type': 'volume', 'source': 'postgres', 'target': POSTGRES_DATA}],
        'shm_size': '256mb',
        'deploy': {'resources': _limits(POSTGRES)},
        'logging': LOGGING,
        'restart': 'unless-stopped',
        'stop_signal': 'SIGINT',  # "fast": it does not wait for clients to leave
        'stop_grace_period': '60s',
        'healthcheck': {
            'test': ['CMD', 'pg_isready', '--username', 'finetuner', '--dbname', 'finetuner'],
            'interval': '5s',
            'timeout': '5s',
            'retries': 12,
            'start_period': '60s',
            'start_interval': '1s',
        },
    }


def _secret_file(key: str, deployment: Deployment) -> str:
    outside = deployment.options.database_url_secret
    return outside if key == 'database-url' and outside else f'./secrets/{key}'


def _escape(value: Any) -> Any:
    """Compose would put variables where a `$` stands."""
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return value.replace('$', '$$') if isinstance(value, str) else value
