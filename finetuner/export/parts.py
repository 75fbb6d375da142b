"""The parts of a deployment, whatever runs them: for each its command line, variables, secrets, volumes and limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from finetuner.export.flow import GATEWAY, FlowExecutor, FlowFile
from finetuner.export.options import Options, replicas_of

GRPC_PORT = 51000
HTTP_PORT = 51001
HEALTH_SERVICE = 'jina.JinaSingleDataRequestRPC'
"""What is asked for in gRPC's health protocol."""
HOME = '/home/finetuner/data'
OBJECTS = '/objects'
SECRETS = '/etc/finetuner/secrets'
POSTGRES = 'postgres'
USER = 1000
STARTUP_SECONDS = 600
"""How long a part may take to load its model, or to wait for others."""
DRAIN_SECONDS = 20
"""How long requests at work may go on after a SIGTERM."""
CHECKPOINT_SECONDS = 60
"""How long the worker of a run may take to leave a checkpoint."""
MARGIN_SECONDS = 25
CONNECTION_SECONDS = 60
"""After this time an encoder has its callers look for replicas anew."""

MEMORY = {'gateway': 2, 'dataset': 4, 'clicks': 2, 'trainer': 16, 'search': 8, 'encoder': 4, POSTGRES: 1}
"""The most GiB of each role: estimates."""

SHARED, OWN, SCRATCH = 'shared', 'own', 'scratch'


@dataclass(frozen=True)
class Volume:
    """
    :param kind: SHARED by all parts that name it, OWN of each part, or SCRATCH: gone with the container. In Kubernetes
        each replica of a part has its own; compose gives the replicas of a part one.
    """

    name: str
    path: str
    kind: str


@dataclass(frozen=True)
class Part:
    """The gateway or an executor.

    :param arguments: of the program `jina`.
    :param environment: what this part has beside `Deployment.environment`.
    :param secrets: keys; each is a file in `SECRETS`.
    :param grace: seconds to end after a SIGTERM.
    """

    name: str
    role: str
    image: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    replicas: int = 1
    gpus: int = 0
    grace: int = DRAIN_SECONDS + MARGIN_SECONDS


@dataclass(frozen=True)
class Deployment:
    """
    :param environment: of all parts.
    """

    gateway: Part
    executors: tuple[Part, ...]
    environment: Mapping[str, str]
    options: Options

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.gateway, *self.executors)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The keys of all secrets."""
        keys = [key for part in self.parts for key in part.secrets]
        return tuple(dict.fromkeys([*keys, *(['postgres-password'] if self.options.own_postgres else [])]))


def plan(flow: FlowFile, options: Options, host: str = '{}') -> Deployment:
    """What has to run for a Flow.

    :param host: how the name of a part becomes the name of its host, with {} for the name.
    """
    executors = tuple(_executor(executor, flow, options) for executor in flow.executors)
    return Deployment(_gateway(flow, options, host), executors, dict(_common(options)), options)


def secret(key: str) -> str:
    """The file of a secret."""
    return f'{SECRETS}/{key}'


def _gateway(flow: FlowFile, options: Options, host: str) -> Part:
    names = [executor.name for executor in flow.executors]
    # one after another, as in the Flow: Jina merges what parallel branches answer, and loses the documents
    graph = {name: [following] for name, following in pairwise(['start-gateway', *names, 'end-gateway'])}
    addresses = {name: [f'grpc://{host.format(name)}:{GRPC_PORT}'] for name in names}
    # a name of several replicas has several addresses: requests go to them in turn
    channel = {**flow.channel_options, 'grpc.lb_policy_name': 'round_robin'}
    arguments = [
        *('gateway', '--name', 'gateway', '--uses', GATEWAY),
        *('--port', str(GRPC_PORT), str(HTTP_PORT), '--protocol', 'grpc', 'http'),
        *('--graph-description', json.dumps(graph), '--deployments-addresses', json.dumps(addresses)),
        *_option('--retries', flow.retries),
        *_option('--timeout-ctrl', flow.timeout_ctrl),
        *_option('--grpc-server-options', flow.server_options),
        *_option('--grpc-channel-options', channel),
    ]
    environment = dict(flow.environment)
    secrets: tuple[str, ...] = ()
    if options.tls:
        secrets = ('tls.crt', 'tls.key')
        environment |= {'FINETUNER_TLS_CERT': secret('tls.crt'), 'FINETUNER_TLS_KEY': secret('tls.key')}
    return Part('gateway', 'gateway', options.image, tuple(arguments), environment, secrets)


def _executor(executor: FlowExecutor, flow: FlowFile, options: Options) -> Part:
    gpus = {'trainer': options.gpus, 'encoder': options.encoder_gpus}.get(executor.role, 0)
    chosen = {'trainer': options.trainers, 'encoder': options.encoders}.get(executor.role)
    server = {**flow.server_options, **executor.server_options}
    if (
        executor.role == 'encoder'
    ):  # its requests are short: a connection that has grown old ends when they are answered
        server.setdefault('grpc.max_connection_age_ms', CONNECTION_SECONDS * 1000)
        server.setdefault('grpc.max_connection_age_grace_ms', STARTUP_SECONDS * 1000)
    arguments = [
        # --native: the executor itself gets the signals, not a parent that leaves it behind
        *('executor', '--native', '--name', executor.name, '--uses', executor.uses, '--port', str(GRPC_PORT)),
        *(['--allow-concurrent'] if executor.is_concurrent else []),
        *_option('--uses-with', executor.uses_with),
        *_option('--grpc-server-options', server),
    ]
    return Part(
        name=executor.name,
        role=executor.role,
        image=options.gpu_image if gpus else options.image,
        arguments=tuple(arguments),
        environment={**_variables(executor.role, gpus, flow, options), **executor.environment},
        secrets=_secrets(options),
        volumes=_volumes(executor.role, flow, options),
        replicas=replicas_of(flow, executor.role, chosen),
        gpus=gpus,
        grace=DRAIN_SECONDS + MARGIN_SECONDS + (CHECKPOINT_SECONDS if executor.role == 'trainer' else 0),
    )


def _option(name: str, value: object) -> list[str]:
    if value is None or value == {}:
        return []
    return [name, json.dumps(value) if isinstance(value, dict) else str(value)]


def _common(options: Options) -> dict[str, str]:
    return {
        'FINETUNER_DRAIN_SECONDS': str(DRAIN_SECONDS),
        'HOME': '/tmp',  # where Jina makes folders as it is imported; all else is read-only
        'GRPC_VERBOSITY': 'ERROR',  # else a line for every connection that ends
        'JINA_LOG_LEVEL': 'INFO',
        'JINA_LOG_NO_COLOR': '1',
        'JINA_OPTOUT_TELEMETRY': '1',
    }


def _variables(role: str, gpus: int, flow: FlowFile, options: Options) -> dict[str, str]:
    variables = {'FINETUNER_HOME': HOME, 'FINETUNER_TOKEN_FILE': secret('token')}
    if options.database == 'postgres':
        variables['FINETUNER_DATABASE_URL_FILE'] = secret('database-url')
    if options.objects == 's3':
        variables['FINETUNER_OBJECTS_URL'] = str(options.objects_url)
        variables['AWS_SHARED_CREDENTIALS_FILE'] = secret('s3-credentials')
        if options.s3_endpoint:
            variables['AWS_ENDPOINT_URL'] = options.s3_endpoint
    elif _has_shared_objects(flow, options):
        variables['FINETUNER_OBJECTS_URL'] = OBJECTS
    if role == 'encoder':
        variables['FINETUNER_REQUIRE_TOKEN'] = 'true'
    if role in ('encoder', 'search'):
        variables['FINETUNER_DEVICE'] = 'cuda' if gpus else 'cpu'
        if options.artifact:
            variables['FINETUNER_ARTIFACT'] = options.artifact
    if role == 'trainer':
        variables['FINETUNER_GPUS'] = str(gpus)
        variables['FINETUNER_STOP_SECONDS'] = str(CHECKPOINT_SECONDS)
        if options.ray_address:
            variables['FINETUNER_RAY_ADDRESS'] = options.ray_address
        if options.ray_address or replicas_of(flow, 'trainer', options.trainers) > 1:
            variables['FINETUNER_SHARE_CHECKPOINTS'] = 'true'
    return variables


def _secrets(options: Options) -> tuple[str, ...]:
    database = ['database-url'] if options.database == 'postgres' else []
    return ('token', *database, *(['s3-credentials'] if options.objects == 's3' else []))


def _has_shared_objects(flow: FlowFile, options: Options) -> bool:
    return options.database == 'postgres' and options.objects == 'folder'


def _volumes(role: str, flow: FlowFile, options: Options) -> tuple[Volume, ...]:
    if not flow.roles() - {'encoder'} and options.database == 'sqlite':
        return (Volume('home', HOME, SCRATCH),)  # no state but a cache, and the hash of the token
    if options.database == 'sqlite':
        return (Volume('home', HOME, SHARED),)
    # notes of objects on their way, and checkpoints, must be found again by the process that comes after
    home = Volume('home', HOME, SCRATCH if role in ('encoder', 'clicks', 'search') else OWN)
    return (home, Volume('objects', OBJECTS, SHARED)) if _has_shared_objects(flow, options) else (home,)
