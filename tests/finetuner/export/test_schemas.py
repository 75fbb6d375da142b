"""Every variant of what is exported is valid by the schemas of those who will read it.

The schema of compose files is that of compose-spec.io, as the package check-jsonschema brings it; those of Kubernetes
are of its own releases, as kubernetes-validate brings them, in their strict form: an unknown field is an error.
"""

import json
from functools import cache
from importlib.resources import files

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator
from yamllint import linter
from yamllint.config import YamlLintConfig

COMPOSE = json.loads(files('check_jsonschema').joinpath('builtin_schemas/vendor/compose-spec.json').read_text())
# 'off' in quotes is what ingress-nginx wants
LINT = YamlLintConfig(
    'extends: default\n'
    'rules: {line-length: disable, comments: disable, truthy: {allowed-values: ["true", "false", "off"]}}'
)
# the oldest whose gRPC probes are stable, one between, and the newest that is known
VERSIONS = ('1.27', '1.31', kubernetes_validate.latest_version())
POSTGRES = ['--database', 'postgres']
S3 = ['--objects', 's3', '--objects-url', 's3://bucket/prefix', '--s3-endpoint', 'http://minio:9000']
VARIANTS = {
    'default': [],
    'train': ['train.yml'],
    'encode': ['encode.yml', '--artifact', 'support@production', '--encoders', '3'],
    'gpu': ['--gpus', '2', '--encoder-gpus', '1'],
    'postgres': POSTGRES,
    'postgres-outside': [*POSTGRES, '--database-url-secret', 'our-database'],
    's3': [*POSTGRES, *S3],
    'sqlite-s3': S3,
    'scaled': [
        *POSTGRES,
        *S3,
        '--encoders',
        '3',
        '--trainers',
        '2',
        '--gpus',
        '1',
        '--ray-address',
        'head:6379',
        '--database-url-secret',
        'our-database',
    ],
    'secrets': [*POSTGRES, '--generate-secrets'],
    'tls': ['--tls'],
}
OF_KUBERNETES = {
    'ingress': ['--tls', '--ingress-host', 'embed.example.com', '--ingress-class', 'nginx'],
    'shared-volume': [
        *POSTGRES,
        '--shared-volume',
        '--trainers',
        '2',
        '--storage-class',
        'nfs',
        '--volume-size',
        '1Ti',
    ],
    'namespace': ['--namespace', 'search'],
}


@cache  # most variants share most manifests
def validate(manifest: str) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(json.loads(manifest), str(version), strict=True)


@pytest.mark.parametrize('variant', VARIANTS)
def test_compose(export, variant):
    written = export('compose', *VARIANTS[variant])
    Draft202012Validator(COMPOSE).validate(written.compose())
    text = (written.folder / 'docker-compose.yml').read_text()
    assert [str(problem) for problem in linter.run(text, LINT)] == []


def test_the_schema_of_compose_finds_mistakes(export):
    content = export('compose').compose()
    content['services']['gateway']['helthcheck'] = {}
    assert not Draft202012Validator(COMPOSE).is_valid(content)


@pytest.mark.parametrize('variant', [*VARIANTS, *OF_KUBERNETES])
def test_kubernetes(export, variant):
    written = export('kubernetes', *{**VARIANTS, **OF_KUBERNETES}[variant])
    manifests = written.manifests()
    for manifest in manifests:
        validate(json.dumps(manifest))
    names = [(manifest['kind'], manifest['metadata']['name']) for manifest in manifests]
    assert len(set(names)) == len(names)
    for file in (written.folder / 'kubernetes').glob('*.yaml'):
        assert [str(problem) for problem in linter.run(file.read_text(), LINT)] == []


def test_the_schemas_of_kubernetes_find_mistakes(export):
    trainer = export('kubernetes').manifest('Deployment', 'finetuner-trainer')
    trainer['spec']['template']['spec']['containers'][0]['readinesProbe'] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match='readinesProbe'):
        kubernetes_validate.validate(trainer, '1.31', strict=True)
