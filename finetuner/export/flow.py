"""Reading a Flow file: which of our executors it has, and with which settings."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CLASSES = {
    'DatasetExecutor': ('dataset', 'executors.dataset.DatasetExecutor'),
    'ClickstreamExecutor': ('clicks', 'executors.clicks.ClickstreamExecutor'),
    'TrainerExecutor': ('trainer', 'executors.trainer.TrainerExecutor'),
    'SearchExecutor': ('search', 'executors.search.SearchExecutor'),
    'FinetunerExecutor': ('encoder', 'executors.encoder.FinetunerExecutor'),
}
GATEWAY = 'executors.gateway.FinetunerGateway'
WITH_ENCODER = 'executors.encoder_gateway.EncoderGateway'
# what the containers decide for themselves, or the services do not need there
IGNORED_OF_FLOW = {'port', 'protocol', 'host', 'name', 'cors', 'title', 'description', 'env'}
KNOWN_OF_FLOW = IGNORED_OF_FLOW | {'retries', 'timeout_ctrl', 'grpc_server_options', 'grpc_channel_options'}
KNOWN_OF_EXECUTOR = {
    *('name', 'uses', 'uses_with', 'replicas', 'env', 'allow_concurrent', 'grpc_server_options'),
    *('timeout_ready', 'py_modules', 'host'),
}
KNOWN_OF_GATEWAY = {'uses', 'py_modules', 'env', 'host', 'port', 'protocol'}
NAME = re.compile(r'[a-z]([-a-z0-9]{0,30}[a-z0-9])?')
SECRET_NAMES = ('TOKEN', 'SECRET', 'PASSWORD', 'PASSWD', 'KEY')
"""How the names of variables end whose values are secrets."""
NO_SECRETS = {'FINETUNER_REQUIRE_TOKEN', 'FINETUNER_TLS_KEY'}
"""Variables that only look as if: a switch, and a path."""
USER = re.compile(r'://[^/?#\s]*@')
"""The user and the password in a URL."""
VARIABLE = re.compile(r'\$\{\{\s*(?:ENV\.)?(\w+)\s*\}\}')


@dataclass(frozen=True)
class FlowExecutor:
    """One executor of a Flow.

    :param role: 'dataset', 'clicks', 'trainer', 'search' or 'encoder'.
    :param uses: its class, with the module.
    """

    name: str
    role: str
    uses: str
    uses_with: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    server_options: Mapping[str, Any] = field(default_factory=dict)
    is_concurrent: bool = False
    replicas: int = 1


@dataclass(frozen=True)
class FlowFile:
    """What a Flow file says, as far as it matters where every part is a container."""

    executors: tuple[FlowExecutor, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    retries: int | None = None
    timeout_ctrl: int | None = None
    server_options: Mapping[str, Any] = field(default_factory=dict)
    channel_options: Mapping[str, Any] = field(default_factory=dict)

    def roles(self) -> set[str]:
        return {executor.role for executor in self.executors}


def find_flow(name: str | None) -> Path:
    """A Flow file by its path, or one of ours by its name, such as train.yml; default finetuner.yml.

    :raises FileNotFoundError: there is none.
    """
    if name and Path(name).expanduser().is_file():
        return Path(name).expanduser()
    spec = importlib.util.find_spec('flows')
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, name or 'finetuner.yml')
        if os.sep not in (name or '') and path.is_file():
            return path
    raise FileNotFoundError(f'there is no Flow file {name or "finetuner.yml"} (working folder: {Path.cwd()})')


def read_flow(path: Path) -> FlowFile:
    """Read a Flow of our executors.

    :raises ValueError: it is no Flow, has executors that are not ours, or settings that cannot be exported.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not YAML: {" ".join(str(error).split())}') from error
    if not isinstance(content, dict) or content.get('jtype') != 'Flow':
        raise ValueError(f'{path} is not a Flow: it has no jtype: Flow')
    settings = _mapping(path, 'with', content.get('with'))
    _refuse_unknown(path, 'with', settings, KNOWN_OF_FLOW)
    gateway = _mapping(path, 'gateway', content.get('gateway'))
    if gateway.get('uses') == WITH_ENCODER:
        raise ValueError(
            f'{path}: the encoder is in the process of the gateway. Export encode.yml, where it has its own'
        )
    _refuse_unknown(path, 'gateway', gateway, KNOWN_OF_GATEWAY)
    if gateway.get('uses', GATEWAY) != GATEWAY:
        raise ValueError(f'{path}: the gateway {gateway["uses"]!r} cannot be exported: write uses: {GATEWAY}')
    entries = content.get('executors')
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path} has no executors')
    executors = tuple(_read_executor(path, entry) for entry in entries)
    for key in ('name', 'role'):
        values = [getattr(executor, key) for executor in executors]
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(
                f'{path} has two executors of the {key} {twice[0]!r}: they would answer the same endpoints'
            )
    return FlowFile(
        executors=executors,
        environment=_environment(path, settings.get('env')) | _environment(path, gateway.get('env')),
        retries=settings.get('retries'),
        timeout_ctrl=settings.get('timeout_ctrl'),
        server_options=_mapping(path, 'grpc_server_options', settings.get('grpc_server_options')),
        channel_options=_mapping(path, 'grpc_channel_options', settings.get('grpc_channel_options')),
    )


def _read_executor(path: Path, entry: Any) -> FlowExecutor:
    entry = _mapping(path, 'an executor', entry)
    uses = str(entry.get('uses'))
    role, class_name = _find_class(path, uses)
    name = str(entry.get('name') or role)
    if not NAME.fullmatch(name) or name in ('gateway', 'postgres'):
        raise ValueError(
            f'{path}: the executor name {name!r} cannot be the name of a host: write a to z, digits and "-", at most '
            '32 of them, and neither gateway nor postgres'
        )
    _refuse_unknown(path, f'the executor {name}', entry, KNOWN_OF_EXECUTOR)
    replicas = entry.get('replicas', 1)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 1:
        raise ValueError(f'{path}: replicas of the executor {name} is {replicas!r}, not a number from 1 on')
    uses_with = _expand(path, _mapping(path, 'uses_with', entry.get('uses_with')))
    if USER.search(str(uses_with)):
        raise ValueError(
            f'{path}: a URL in uses_with of the executor {name} has a user or a password, which would stand in a '
            'command line for all to read: give one that needs none'
        )
    if 'token' in uses_with:
        raise ValueError(
            f'{path}: the executor {name} has a token in uses_with, which would stand in a command line for all to '
            'read: leave it out, the secret "token" takes its place'
        )
    return FlowExecutor(
        name=name,
        role=role,
        uses=class_name,
        uses_with=uses_with,
        environment=_environment(path, entry.get('env')),
        server_options=_mapping(path, 'grpc_server_options', entry.get('grpc_server_options')),
        is_concurrent=bool(entry.get('allow_concurrent', False)),
        replicas=replicas,
    )


def _find_class(path: Path, uses: str) -> tuple[str, str]:
    """Role and class of an executor, which is named as a class or by the path of its manifest."""
    class_name = uses
    manifest = path.parent / uses
    if uses.endswith(('.yml', '.yaml')) and manifest.is_file():
        content = yaml.safe_load(manifest.read_text(encoding='utf-8'))
        class_name = str(content.get('jtype')) if isinstance(content, dict) else uses
    for short, found in CLASSES.items():
        if class_name in (short, found[1]):
            return found
    known = ', '.join(found[1] for found in CLASSES.values())
    raise ValueError(
        f'{path}: the executor {uses!r} cannot be exported, for what it needs is not known: only {known} can'
    )


def _environment(path: Path, value: Any) -> dict[str, str]:
    variables = {str(name): str(text) for name, text in _expand(path, _mapping(path, 'env', value)).items()}
    for name, text in variables.items():
        is_secret = text and name.upper().endswith(SECRET_NAMES) and name not in NO_SECRETS
        if is_secret or USER.search(text):
            what = 'is a secret' if is_secret else 'has a user or a password in a URL'
            raise ValueError(
                f'{path}: {name} in env {what}, and what is exported is for all to read: leave it out, '
                f'{_place_of(name)}'
            )
    return variables


def _place_of(secret: str) -> str:
    """Where the value of a variable comes from in place of the Flow file."""
    if secret in ('FINETUNER_TOKEN', 'JINA_AUTH_TOKEN'):
        return 'the secret "token" takes its place'
    if secret == 'FINETUNER_DATABASE_URL':
        return 'and name a secret that has it with --database postgres --database-url-secret'
    if secret.startswith('AWS_'):
        return 'with --objects s3 the secret "s3-credentials" takes its place'
    return 'and hand it over in an env_file of compose, or a Secret of Kubernetes, of your own beside what is exported'


def _expand(path: Path, value: Any) -> Any:
    """Put the variables of this process where `${{ ENV.NAME }}` stands: a container has others."""
    if isinstance(value, dict):
        return {key: _expand(path, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(path, item) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ValueError(f'{path} needs the environment variable {match[1]}, which is not set')
        return os.environ[match[1]]

    return VARIABLE.sub(replace, value)


def _mapping(path: Path, what: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f'{path}: {what} is {value!r}, not a mapping')
    return value


def _refuse_unknown(path: Path, where: str, given: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(given.keys() - known):
        raise ValueError(f'{path}: {unknown[0]!r} of {where} cannot be exported: leave it out, or export another Flow')
