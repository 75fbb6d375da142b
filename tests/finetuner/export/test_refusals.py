"""Flows that cannot be exported, and options that do not go together, are refused with a sentence."""

import pytest

ENCODER = '{name: encoder, uses: executors.encoder.FinetunerExecutor%s}'


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (
            '--trainers 2',
            'several trainers must share their state, and SQLite is a file on one machine: give --database',
        ),
        (
            '--trainers 2 --database postgres',
            'the objects are in a folder on one machine: give --database postgres, and',
        ),
        ('--ray-address ray://x:1', "--ray-address 'ray://x:1' is that of a Ray client: give host:6379"),
        ('--ray-address x:1', 'the machines of a Ray cluster must reach the state'),
        (
            '--ray-address x:1 --database postgres --objects s3 --objects-url s3://b/p',
            'must reach the state: give --database-url-secret and --objects s3',
        ),
        (
            '--ray-address x:1 --database postgres --database-url-secret x --shared-volume',
            'must reach the state: give --database-url-secret and --objects s3',
        ),
        ('--database mysql', "--database is 'mysql': choose sqlite or postgres"),
        ('--objects ftp', "--objects is 'ftp': choose folder or s3"),
        ('--objects s3', '--objects s3 needs --objects-url s3://bucket/prefix'),
        ('--objects s3 --objects-url https://x', '--objects s3 needs --objects-url s3://bucket/prefix'),
        ('--objects-url s3://b/p', 'add --objects s3'),
        ('--objects s3 --objects-url s3://b/p --s3-endpoint minio', "--s3-endpoint 'minio' is no URL"),
        ('--database-url-secret x', 'add --database postgres'),
        ('--shared-volume', '--shared-volume is for the folder of the objects'),
        ('--encoders 0', '--encoders is 0: give 1 or more'),
        ('--gpus -1', '--gpus is -1: give 0 or more'),
        ('--artifact a;b', "--artifact 'a;b' is none"),
        ('--artifact bad@@x', "--artifact 'bad@@x' is none: give an id, name@stage"),
        ('--artifact support@', "--artifact 'support@' is none: give an id, name@stage"),
        ('--artifact @production', "--artifact '@production' is none: give an id, name@stage"),
        ('--artifact a@b@c', "--artifact 'a@b@c' is none: give an id, name@stage"),
        ('--artifact model/a@b', "--artifact 'model/a@b' is none: give an id, name@stage"),
        ('--artifact https://me:pw@host/x.zip', '--artifact has a user or a password in it, and what is exported is'),
        (
            '--objects s3 --objects-url s3://b/p --s3-endpoint https://me:pw@minio',
            'they belong into the secret "s3-credentials"',
        ),
        (
            '--database postgres --database-url-secret postgresql://me:pw@host/db',
            '--database-url-secret has a user or a password in it',
        ),
        ('encode.yml --gpus 1', '--gpus is for a Flow with a trainer, and this one has none'),
        ('train.yml --artifact x', '--artifact is for a Flow with an encoder, and this one has none'),
        ('--namespace My_Space', "--namespace 'My_Space' is not a name of Kubernetes"),
        ('--scratch-size big', "--scratch-size 'big' is not a size such as 50Gi"),
        ('--volume-size big', "--volume-size 'big' is not a size such as 50Gi"),
        ('--ingress-class nginx', 'add --ingress-host'),
        ('nowhere.yml', 'there is no Flow file nowhere.yml'),
        ('serve.yml', 'the encoder is in the process of the gateway. Export encode.yml'),
    ],
)
def test_options(export, options, sentence):
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        export('kubernetes', *options.split())
    assert sentence in str(raised.value) and ':pw' not in str(raised.value)


@pytest.mark.parametrize(
    'artifact',
    ['a' * 24, 'support@production', 'https://host/a@b/x.zip', 's3://b/x.zip', '/models/a@b.zip', 'org/model'],
)
def test_what_an_encoder_may_serve(export, artifact):
    export('kubernetes', '--artifact', artifact)


@pytest.mark.parametrize('options', [(), ('--database', 'postgres', '--ingress-host', 'h', '--generate-secrets')])
def test_no_executor_takes_the_place_of_another_file(export, tmp_path, options):
    flow = 'jtype: Flow\nexecutors: [{name: %s, uses: DatasetExecutor}, {name: t, uses: TrainerExecutor}]'
    (tmp_path / 'flow.yml').write_text(flow % 'd')
    written = export('kubernetes', 'flow.yml', *options)
    others = {path.stem for path in (written.folder / 'kubernetes').glob('*.yaml')} - {'d', 't'}
    before = {path: path.read_text() for path in (written.folder / 'kubernetes').iterdir()}
    for name in {*others, 'config', 'ingress', 'kustomization', 'namespace', 'network-policies', 'secret', 'volumes'}:
        (tmp_path / 'flow.yml').write_text(flow % name)
        with pytest.raises(ValueError, match=rf"give the executor '{name}' another name|neither gateway nor postgres"):
            export('kubernetes', 'flow.yml', *options)
    assert {path: path.read_text() for path in (written.folder / 'kubernetes').iterdir()} == before


@pytest.mark.parametrize('where', ['executor', 'gateway', 'with'])
@pytest.mark.parametrize(
    ('name', 'place'),
    [
        ('FINETUNER_TOKEN', 'the secret "token" takes its place'),
        ('AWS_SECRET_ACCESS_KEY', 'with --objects s3 the secret "s3-credentials" takes its place'),
        ('FINETUNER_DATABASE_URL', 'and name a secret that has it with --database postgres --database-url-secret'),
        ('WANDB_API_KEY', 'and hand it over in an env_file of compose, or a Secret of Kubernetes, of your own'),
        ('DB_PASSWORD', 'and hand it over in an env_file'),
    ],
)
def test_secrets_are_not_written_for_all_to_read(export, tmp_path, monkeypatch, where, name, place):
    value = 'postgresql://me:hidden@host/db' if name.endswith('URL') else 'hidden'
    monkeypatch.setenv(name, value)
    env = f'env: {{{name}: "${{{{ ENV.{name} }}}}"}}'
    executor = ENCODER % (f', {env}' if where == 'executor' else '')
    settings = '' if where == 'executor' else f'\n{where}: {{{env}}}'
    (tmp_path / 'flow.yml').write_text(f'jtype: Flow\nexecutors: [{executor}]{settings}')
    for kind in ('compose', 'kubernetes'):
        with pytest.raises(ValueError, match=f'flow.yml: {name} in env .* for all to read: leave it out, ') as raised:
            export(kind, 'flow.yml')
        assert place in str(raised.value) and 'hidden' not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ['flow.yml']


def test_what_only_looks_like_a_secret_is_exported(export, tmp_path):
    env = 'env: {FINETUNER_REQUIRE_TOKEN: "false", HF_TOKEN: "", WANDB_API_KEY_FILE: /run/key}'
    (tmp_path / 'flow.yml').write_text(f'jtype: Flow\nexecutors: [{ENCODER % f", {env}"}]')
    environment = export('compose', 'flow.yml').compose()['services']['encoder']['environment']
    assert environment['FINETUNER_REQUIRE_TOKEN'] == 'false' and environment['HF_TOKEN'] == ''


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        ('a: [', 'flow.yml is not YAML'),
        ('jtype: Executor', 'is not a Flow: it has no jtype: Flow'),
        ('jtype: Flow', 'has no executors'),
        ('jtype: Flow\nexecutors: [{uses: jinahub://Thing}]', "the executor 'jinahub://Thing' cannot be exported"),
        (f'jtype: Flow\nexecutors: [{ENCODER % ", shards: 2"}]', "'shards' of the executor encoder cannot be exported"),
        (f'jtype: Flow\nexecutors: [{ENCODER % ", replicas: no"}]', 'replicas of the executor encoder is False'),
        (f'jtype: Flow\nexecutors: [{ENCODER % ", uses_with: {token: x}"}]', 'has a token in uses_with'),
        (
            f'jtype: Flow\nexecutors: [{ENCODER % ", uses_with: {artifact: https://me:pw@host/x.zip}"}]',
            'a URL in uses_with of the executor encoder has a user or a password',
        ),
        (f'jtype: Flow\nexecutors: [{ENCODER % ""}, {ENCODER % ""}]', "two executors of the name 'encoder'"),
        (f'jtype: Flow\nexecutors: [{ENCODER % ""}]\nwith: {{tls: true}}', "'tls' of with cannot be exported"),
        (f'jtype: Flow\nexecutors: [{ENCODER % ""}]\ngateway: {{uses: Mine}}', "the gateway 'Mine' cannot be exported"),
        (
            'jtype: Flow\nexecutors: [{name: My_One, uses: FinetunerExecutor}]',
            "name 'My_One' cannot be the name of a host",
        ),
        ('jtype: Flow\nexecutors: [{name: gateway, uses: FinetunerExecutor}]', 'neither gateway nor postgres'),
        (
            'jtype: Flow\nexecutors: [{uses: FinetunerExecutor, env: {A: "${{ ENV.NOT_SET }}"}}]',
            'NOT_SET, which is not set',
        ),
    ],
)
def test_flows(export, tmp_path, text, sentence):
    (tmp_path / 'flow.yml').write_text(text)
    with pytest.raises(ValueError, match='flow.yml') as raised:
        export('compose', 'flow.yml')
    assert sentence in str(raised.value)
    assert not (tmp_path / 'docker-compose.yml').exists()
