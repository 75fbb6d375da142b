"""A docker-compose file of a deployment, after https://compose-spec.io."""

from __future__ import annotations

from ipaddress import ip_address
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
    :raises ValueError: `publish` is no address.
    """
    try:
        address = f'[{publish}]' if ip_address(publish).version == 6 else publish
    except ValueError:
        raise ValueError(f'--publish {publish!r} is no address of a machine, such as 127.0.0.1 or 0.0.0.0') from None
    services = {part.name: _service(part, deployment) for part in deployment.parts}
    services['gateway']['ports'] = [f'{address}:{port}:{GRPC_PORT}', f'{address}:{http_port}:{HTTP_PORT}']
    services['gateway']['depends_on'] = {
        part.name: {'condition': 'service_healthy', 'restart': False} for part in deployment.executors
    }
    if deployment.options.own_postgres:
        services[POSTGRES] = _postgres()
    volumes = [volume for service in services.values() for volume in service.get('volumes', ())]
    names = dict.fromkeys(volume['source'] for volume in volumes if volume['type'] == 'volume')
    content: dict[str, Any] = {'name': 'finetuner', 'services': _escape(services)}
    if names:
        content['volumes'] = {name: {} for name in names}
    content['secrets'] = {key: {'file': _secret_file(key, deployment)} for key in deployment.secrets}
    return content


def _service(part: Part, deployment: Deployment) -> dict[str, Any]:
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
    service['deploy'] = _deploy(part)
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


def _deploy(part: Part) -> dict[str, Any]:
    deploy: dict[str, Any] = {}
    if part.replicas > 1:
        deploy['replicas'] = part.replicas
    deploy['resources'] = _limits(part.role)
    if part.gpus:
        device = {'driver': 'nvidia', 'count': part.gpus, 'capabilities': ['gpu']}
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
