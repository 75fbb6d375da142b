"""The commands `finetuner export compose` and `finetuner export kubernetes`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from finetuner.console import console, progress_console
from finetuner.export import compose, kubernetes, secrets
from finetuner.export.flow import find_flow, read_flow
from finetuner.export.kubernetes_names import PREFIX, SECRETS, Cluster, Manifest, check_cluster, secret_of
from finetuner.export.options import Options, check_options
from finetuner.export.parts import POSTGRES, Deployment, plan
from finetuner.export.writing import refuse_foreign, remove_stale, to_yaml, write_file

export = typer.Typer(
    help='Turn a Flow file into a deployment: docker-compose or Kubernetes.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# where the secrets usually lie that others have made
SOURCES = {'s3-credentials': '~/.aws/credentials', 'tls.crt': 'fullchain.pem', 'tls.key': 'privkey.pem'}

FlowName = Annotated[
    str | None,
    typer.Argument(metavar='[FLOW.yml]', help='A Flow of our executors.', show_default='finetuner.yml'),
]
Image = Annotated[str, typer.Option(help='What all parts run from: build it with Dockerfile.')]
GpuImage = Annotated[str, typer.Option(help='What parts with a GPU run from: build it with Dockerfile.gpu.')]
Database = Annotated[str, typer.Option(help='sqlite or postgres.')]
DatabaseUrlSecret = Annotated[
    str | None,
    typer.Option(
        help='Use a PostgreSQL that is there already: a file with its URL, or of Kubernetes a Secret with it as '
        'database-url.',
        show_default=False,
    ),
]
Objects = Annotated[str, typer.Option(help='folder or s3: where data sets and artifacts lie.')]
ObjectsUrl = Annotated[str | None, typer.Option(help='s3://bucket/prefix', show_default=False)]
S3Endpoint = Annotated[str | None, typer.Option(help="Of an S3 that is not Amazon's: its URL.", show_default=False)]
Encoders = Annotated[int | None, typer.Option(help='Replicas that serve.', show_default='of the Flow')]
Trainers = Annotated[int | None, typer.Option(help='Replicas that train.', show_default='of the Flow')]
Gpus = Annotated[int, typer.Option(help='GPUs of each trainer.')]
EncoderGpus = Annotated[int, typer.Option(help='GPUs of each encoder.')]
Artifact = Annotated[
    str | None,
    typer.Option(help='What is served: an id, name@stage, a URL or a model by name.', show_default=False),
]
RayAddress = Annotated[str | None, typer.Option(help='A Ray cluster, host:6379, for the runs.', show_default=False)]
Tls = Annotated[bool, typer.Option('--tls', help='The gateway speaks TLS.')]
Generate = Annotated[
    bool, typer.Option('--generate-secrets', help='Make up the secrets that can be, unless they are there already.')
]


@export.command(name='compose')
def export_compose(
    context: typer.Context,
    flow: FlowName = None,
    output: Annotated[Path, typer.Option('--output', '-o')] = Path('docker-compose.yml'),
    image: Image = Options.image,
    gpu_image: GpuImage = Options.gpu_image,
    database: Database = Options.database,
    database_url_secret: DatabaseUrlSecret = None,
    objects: Objects = Options.objects,
    objects_url: ObjectsUrl = None,
    s3_endpoint: S3Endpoint = None,
    encoders: Encoders = None,
    trainers: Trainers = None,
    gpus: Gpus = 0,
    encoder_gpus: EncoderGpus = 0,
    artifact: Artifact = None,
    ray_address: RayAddress = None,
    tls: Tls = False,
    publish: Annotated[
        str, typer.Option(help='The address of the ports; 0.0.0.0 for all of this machine.')
    ] = '127.0.0.1',
    port: Annotated[int, typer.Option(min=1, max=65535, help='Of gRPC.')] = 51000,
    http_port: Annotated[int, typer.Option(min=1, max=65535, help='Of HTTP.')] = 51001,
    generate_secrets: Generate = False,
) -> None:
    """Write a docker-compose file for one machine."""
    options = Options(
        image=image,
        gpu_image=gpu_image,
        database=database,
        database_url_secret=database_url_secret,
        objects=objects,
        objects_url=objects_url,
        s3_endpoint=s3_endpoint,
        encoders=encoders,
        trainers=trainers,
        gpus=gpus,
        encoder_gpus=encoder_gpus,
        shared_volume=database == 'postgres' and objects == 'folder',  # of one machine, like all volumes there
        artifact=artifact,
        ray_address=ray_address,
        tls=tls,
    )
    deployment = _plan(flow, options, '{}')
    content = compose.compose_file(deployment, publish, port, http_port)
    refuse_foreign(output)
    folder = output.parent / 'secrets'
    output.parent.mkdir(parents=True, exist_ok=True)
    if generate_secrets:
        _make_private(folder)
    write_file(output, to_yaml([content]))
    console.print(f'Wrote [bold]{escape(str(output))}[/]: {_names(deployment)}.')
    if gpus_taken := compose.gpus_by_service(deployment):
        console.print(_gpus(gpus_taken), soft_wrap=True, highlight=False)
    made = secrets.generate(deployment, POSTGRES)
    if generate_secrets:
        _write_secret_files(folder, made)
    asked = secrets.asked_for(deployment, POSTGRES)
    missing = {key: meaning for key, meaning in asked.items() if not (folder / key).exists()}
    for key, meaning in missing.items():
        console.print(escape(f'Missing: {folder / key}: {meaning}'), soft_wrap=True, highlight=False)
    if not tls and not ip_address(publish).is_loopback:
        _warn(f'whoever reaches {publish} can read tokens on their way: add --tls, or have TLS in front of it')
    _next(
        *([_with_secrets(context)] if missing.keys() & made.keys() and not generate_secrets else []),
        *(
            f'install -m 644 {SOURCES.get(key, "FILE")} {shlex.quote(str(folder / key))}'
            for key in missing
            if key not in made or generate_secrets
        ),
        f'docker compose --file {shlex.quote(str(output))} up --detach --wait',
    )


@export.command(name='kubernetes')
def export_kubernetes(
    context: typer.Context,
    flow: FlowName = None,
    output: Annotated[Path, typer.Option('--output', '-o', help='A folder.')] = Path('kubernetes'),
    image: Image = Options.image,
    gpu_image: GpuImage = Options.gpu_image,
    database: Database = Options.database,
    database_url_secret: DatabaseUrlSecret = None,
    objects: Objects = Options.objects,
    objects_url: ObjectsUrl = None,
    s3_endpoint: S3Endpoint = None,
    encoders: Encoders = None,
    trainers: Trainers = None,
    gpus: Gpus = 0,
    encoder_gpus: EncoderGpus = 0,
    artifact: Artifact = None,
    ray_address: RayAddress = None,
    tls: Tls = False,
    shared_volume: Annotated[
        bool, typer.Option('--shared-volume', help='The volume of the objects can be on several machines at once.')
    ] = False,
    namespace: Annotated[str, typer.Option()] = Cluster.namespace,
    storage_class: Annotated[str | None, typer.Option(help='Of all volumes.', show_default="the cluster's")] = None,
    volume_size: Annotated[str, typer.Option(help='Of each volume that holds state.')] = Cluster.volume_size,
    scratch_size: Annotated[
        str, typer.Option(help='Of each volume that holds copies, caches and checkpoints alone.')
    ] = Cluster.scratch_size,
    ingress_host: Annotated[
        str | None, typer.Option(help='Have HTTP reached under this name from outside.', show_default=False)
    ] = None,
    ingress_class: Annotated[str | None, typer.Option(help='Which Ingress controller.', show_default=False)] = None,
    generate_secrets: Generate = False,
) -> None:
    """Write Kubernetes manifests into a folder."""
    options = Options(
        image=image,
        gpu_image=gpu_image,
        database=database,
        database_url_secret=database_url_secret,
        objects=objects,
        objects_url=objects_url,
        s3_endpoint=s3_endpoint,
        encoders=encoders,
        trainers=trainers,
        gpus=gpus,
        encoder_gpus=encoder_gpus,
        shared_volume=shared_volume,
        artifact=artifact,
        ray_address=ray_address,
        tls=tls,
    )
    cluster = Cluster(namespace, storage_class, volume_size, scratch_size, ingress_host, ingress_class)
    check_cluster(cluster)
    deployment = _plan(flow, options, PREFIX + '{}')
    files = kubernetes.manifests(deployment, cluster)
    output.mkdir(parents=True, exist_ok=True)
    secret_path = output / kubernetes.SECRET_FILE
    for path in [*(output / name for name in files), secret_path, output / 'kustomization.yaml']:
        refuse_foreign(path)
    made = secrets.generate(deployment, PREFIX + POSTGRES)
    kept = kubernetes.read_secret(secret_path)  # of an earlier export: it stays in use
    values = secrets.complete(kept['stringData'] if kept else {}, made if generate_secrets else {})
    for name, documents in files.items():
        write_file(output / name, to_yaml(documents))
    names = sorted([*files, *([kubernetes.SECRET_FILE] if values else [])])
    write_file(output / 'kustomization.yaml', to_yaml([kubernetes.kustomization(names)]))
    remove_stale(output, [*names, 'kustomization.yaml'])
    if values:
        _write_secret(secret_path, kept, kubernetes.secret_manifest(values, cluster))
    console.print(f'Wrote [bold]{escape(str(output))}[/]: {_names(deployment)}.')
    missing = _missing_secrets(deployment, values)
    creations = {name: _creation(name, keys, namespace) for name, keys in missing.items()}
    for name, keys in missing.items():
        console.print(escape(f'Missing: the Secret {name}: {creations[name]}'), soft_wrap=True, highlight=False)
        for key, meaning in keys.items():
            console.print(escape(f'    {key}: {meaning}'), soft_wrap=True, highlight=False)
    if ingress_host and not tls:
        _warn(f'whoever listens on the way to {ingress_host} can read tokens: add --tls, or have TLS in front of it')
    makes_own = SECRETS in missing and not generate_secrets
    brought = [command for name, command in creations.items() if not (makes_own and name == SECRETS)]
    _next(
        *([_with_secrets(context)] if makes_own else []),
        *([f'kubectl apply --filename {shlex.quote(str(output / "namespace.yaml"))}'] if brought else []),
        *brought,
        f'kubectl apply --kustomize {shlex.quote(str(output))}',
    )


def _plan(flow: str | None, options: Options, host: str) -> Deployment:
    content = read_flow(find_flow(flow))
    check_options(options, content)
    return plan(content, options, host)


def _make_private(folder: Path) -> None:
    """Make a folder that its owner alone may enter: the files in it are read in containers by users with other numbers.

    :raises PermissionError: it is there, and is for others, too.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        raise PermissionError(f'others may enter {folder}, and read the secrets in it: chmod 700 {folder}')


def _write_secret_files(folder: Path, values: Mapping[str, str]) -> None:
    kept = {key: '' for key in values if (folder / key).exists()}
    for key, value in secrets.complete(kept, values).items():
        if key not in kept:
            write_file(folder / key, value)


def _write_secret(path: Path, kept: Manifest | None, wanted: Manifest) -> None:
    """Write the Secret, unless it is there as it is wanted. Values that are there are in both."""
    before = kept['metadata']['namespace'] if kept else wanted['metadata']['namespace']
    if before != wanted['metadata']['namespace']:
        console.print(
            f'Moved {escape(str(path))} from the namespace {escape(before)} to {wanted["metadata"]["namespace"]}: its '
            'values are those of before.',
            soft_wrap=True,
        )
    if kept is None or (before, kept['stringData']) != (wanted['metadata']['namespace'], wanted['stringData']):
        write_file(path, to_yaml([wanted]), 0o600)


def _missing_secrets(deployment: Deployment, values: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The Secrets that are in no file, each with its keys and what they mean."""
    missing: dict[str, dict[str, str]] = {}
    for key, meaning in secrets.asked_for(deployment, PREFIX + POSTGRES).items():
        name = secret_of(key, deployment.options)
        if name != SECRETS or key not in values:
            missing.setdefault(name, {})[key] = meaning
    return missing


def _creation(name: str, keys: Iterable[str], namespace: str) -> str:
    files = shlex.join(f'--from-file={key}' for key in keys)
    return f'kubectl --namespace {namespace} create secret generic {name} {files}'


def _with_secrets(context: typer.Context) -> str:
    """This very command, with --generate-secrets."""
    words = ['finetuner', 'export', str(context.info_name)]
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is None or source.name != 'COMMANDLINE':
            continue
        value = context.params[str(parameter.name)]
        words += [parameter.opts[0]] if parameter.param_type_name == 'option' else []
        words += [] if value is True else [str(value)]
    return shlex.join([*words, '--generate-secrets'])


def _names(deployment: Deployment) -> str:
    parts = [f'{part.name} ({part.replicas})' if part.replicas > 1 else part.name for part in deployment.parts]
    return ', '.join([*parts, *(['postgres'] if deployment.options.own_postgres else [])])


def _gpus(taken: Mapping[str, Sequence[str]]) -> str:
    """Which GPUs of the machine are taken, and how many it must have."""
    needed = sum(map(len, taken.values()))
    by_service = '; '.join(f'{name}: {", ".join(ids)}' for name, ids in taken.items())
    return (
        f'This machine needs {needed} GPU{"s" if needed > 1 else ""}, by the numbers of nvidia-smi --list-gpus. '
        f'Each service has its own: {by_service}.'
    )


def _next(*commands: str) -> None:
    for number, command in enumerate(commands):
        order = 'then' if number else 'Next'
        progress_console.print(f'[dim]{order}:[/] {escape(command)}', soft_wrap=True, highlight=False)


def _warn(sentence: str) -> None:
    progress_console.print(f'[yellow]Warning:[/] {escape(sentence)}', soft_wrap=True, highlight=False)
