"""What is chosen for a deployment beside the Flow, and which choices do not go together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from finetuner.export.flow import USER, FlowFile

DATABASES = ('sqlite', 'postgres')
OBJECTS = ('folder', 's3')
ALIAS = r'[A-Za-z0-9][A-Za-z0-9._-]{0,149}@[A-Za-z0-9][A-Za-z0-9._-]{0,49}'
"""The rule of the registry, which this package does without."""
ARTIFACT = re.compile(rf'[\w.:/+-]+|{ALIAS}|([\w+]+:/)?/[\w.:@/+-]+')
"""An id or a name, an alias, or a URL or an absolute path, where an @ may be anywhere."""


@dataclass(frozen=True)
class Options:
    """
    :param image: what all parts run from; `gpu_image` what those with a GPU run from.
    :param database: 'sqlite', in the volume that all share, or 'postgres'.
    :param database_url_secret: of a PostgreSQL database outside; without it one is deployed too. The name of a
        Kubernetes Secret with the key `database-url`, or for compose the path of a file.
    :param objects: 'folder', in a volume, or 's3'.
    :param objects_url: `s3://bucket/prefix`.
    :param s3_endpoint: the URL of an S3 service that is not Amazon's.
    :param encoders: replicas of the encoder, default those of the Flow.
    :param trainers: replicas of the trainer, default those of the Flow.
    :param gpus: of each trainer. `encoder_gpus`: of each encoder.
    :param shared_volume: the volume of the objects can be mounted on several machines (ReadWriteMany).
    :param artifact: what the encoder serves.
    :param ray_address: a Ray cluster that works on the runs.
    :param tls: the gateway speaks TLS, with the secrets `tls.crt` and `tls.key`.
    """

    image: str = 'finetuner:latest'
    gpu_image: str = 'finetuner-gpu:latest'
    database: str = 'sqlite'
    database_url_secret: str | None = None
    objects: str = 'folder'
    objects_url: str | None = None
    s3_endpoint: str | None = None
    encoders: int | None = None
    trainers: int | None = None
    gpus: int = 0
    encoder_gpus: int = 0
    shared_volume: bool = False
    artifact: str | None = None
    ray_address: str | None = None
    tls: bool = False

    @property
    def own_postgres(self) -> bool:
        """Whether a PostgreSQL server is part of the deployment."""
        return self.database == 'postgres' and self.database_url_secret is None

    @property
    def is_shared(self) -> bool:
        """Whether what a run needs can be had from any machine."""
        return self.database == 'postgres' and (self.objects == 's3' or self.shared_volume)


def check_options(options: Options, flow: FlowFile) -> None:
    """
    :raises ValueError: options that are malformed, or do not go together.
    """
    for name, chosen, known in (('database', options.database, DATABASES), ('objects', options.objects, OBJECTS)):
        if chosen not in known:
            raise ValueError(f'--{name} is {chosen!r}: choose {" or ".join(known)}')
    if options.database_url_secret and options.database != 'postgres':
        raise ValueError('--database-url-secret is of PostgreSQL: add --database postgres')
    _check_urls(options)
    _check_objects(options)
    _check_numbers(options)
    if options.artifact is not None and not ARTIFACT.fullmatch(options.artifact):
        raise ValueError(f'--artifact {options.artifact!r} is none: give an id, name@stage, a URL or a model by name')
    for option, role, article, value in (
        ('encoders', 'encoder', 'an', options.encoders),
        ('encoder-gpus', 'encoder', 'an', options.encoder_gpus),
        ('artifact', 'encoder', 'an', options.artifact),
        ('trainers', 'trainer', 'a', options.trainers),
        ('gpus', 'trainer', 'a', options.gpus),
        ('ray-address', 'trainer', 'a', options.ray_address),
    ):
        if value and role not in flow.roles():
            raise ValueError(f'--{option} is for a Flow with {article} {role}, and this one has none')
    if replicas_of(flow, 'dataset', None) > 1 and not options.is_shared:
        raise ValueError(f'several dataset executors need what several trainers do: {NEEDED}')
    if replicas_of(flow, 'trainer', options.trainers) > 1 and not options.is_shared:
        raise ValueError(f'several trainers must share their state, and {_lacking(options)}: {NEEDED}')
    if options.ray_address and options.ray_address.startswith('ray://'):
        raise ValueError(f'--ray-address {options.ray_address!r} is that of a Ray client: give host:6379')
    if options.ray_address and (not options.database_url_secret or options.objects != 's3'):
        raise ValueError(
            'the machines of a Ray cluster must reach the state: give --database-url-secret and --objects s3'
        )


NEEDED = 'give --database postgres, and --objects s3 or --shared-volume'


def replicas_of(flow: FlowFile, role: str, chosen: int | None) -> int:
    """How many of the executor are to run: 0 if the Flow has none."""
    return next((chosen or executor.replicas for executor in flow.executors if executor.role == role), 0)


def _lacking(options: Options) -> str:
    if options.database == 'sqlite':
        return 'SQLite is a file on one machine'
    return 'the objects are in a folder on one machine'


def _check_urls(options: Options) -> None:
    for name, value, place in (
        ('artifact', options.artifact, 'give an id, or a URL that needs none'),
        ('objects-url', options.objects_url, 'they belong into the secret "s3-credentials"'),
        ('s3-endpoint', options.s3_endpoint, 'they belong into the secret "s3-credentials"'),
        ('database-url-secret', options.database_url_secret, 'put the URL into a secret, and name that'),
    ):
        if value and USER.search(value):
            raise ValueError(
                f'--{name} has a user or a password in it, and what is exported is for all to read: {place}'
            )


def _check_objects(options: Options) -> None:
    if options.objects == 's3':
        url = urlsplit(options.objects_url or '')
        if url.scheme != 's3' or not url.netloc:
            raise ValueError('--objects s3 needs --objects-url s3://bucket/prefix')
    elif options.objects_url or options.s3_endpoint:
        raise ValueError('--objects-url and --s3-endpoint are of S3: add --objects s3')
    if options.s3_endpoint and urlsplit(options.s3_endpoint).scheme not in ('http', 'https'):
        raise ValueError(f'--s3-endpoint {options.s3_endpoint!r} is no URL: write https://host:port')
    if options.shared_volume and (options.objects == 's3' or options.database == 'sqlite'):
        raise ValueError(
            '--shared-volume is for the folder of the objects, beside a database elsewhere: use it with '
            '--database postgres and --objects folder'
        )


def _check_numbers(options: Options) -> None:
    for name, number, least in (
        ('encoders', options.encoders, 1),
        ('trainers', options.trainers, 1),
        ('gpus', options.gpus, 0),
        ('encoder-gpus', options.encoder_gpus, 0),
    ):
        if number is not None and number < least:
            raise ValueError(f'--{name} is {number}: give {least} or more')
