"""What the compose file means to an engine: order, secrets, volumes, ports and stops."""

import json
import shlex
import stat

import pytest

from tests.integration.dockerfiles import values

POSTGRES = ['--database', 'postgres']


def test_all_that_is_named_is_there(export):
    content = export('compose', *POSTGRES, '--generate-secrets').compose()
    for service in content['services'].values():
        assert service.get('depends_on', {}).keys() <= content['services'].keys()
        assert {volume['source'] for volume in service.get('volumes', ())} <= content['volumes'].keys()
        assert {secret['source'] for secret in service.get('secrets', ())} <= content['secrets'].keys()
        for before in service.get('depends_on', {}):
            assert 'healthcheck' in content['services'][before]


@pytest.mark.parametrize('image', ['Dockerfile', 'Dockerfile.gpu'])
@pytest.mark.parametrize('options', [[], POSTGRES, [*POSTGRES, '--trainers', '2']])
def test_volumes_belong_to_the_user_of_the_programs(export, image, options):
    """A volume that begins at a folder which the image does not have is root's."""
    services = export('compose', *options).compose()['services']
    targets = {
        mount['target'] for name, one in services.items() if name != 'postgres' for mount in one.get('volumes', ())
    }
    (made,) = [run for run in values(image, 'RUN') if 'install --directory' in run]
    folders = shlex.split(made.partition('install --directory')[2])
    assert '--owner=finetuner' in folders
    assert targets <= set(folders)


def test_programs_can_write_to_their_home(export):
    """Jina makes folders there as it is imported, and the file system is read-only."""
    for options in ([], ['encode.yml'], [*POSTGRES, '--tls']):
        services = export('compose', *options).compose()['services']
        homes = {name: one['environment']['HOME'] for name, one in services.items() if name != 'postgres'}
        assert all([f'{home}:exec'] == services[name]['tmpfs'] for name, home in homes.items()), homes


def test_ports_are_for_this_machine_unless_others_are_meant(export):
    assert export('compose').compose()['services']['gateway']['ports'] == [
        '127.0.0.1:51000:51000',
        '127.0.0.1:51001:51001',
    ]
    content = export('compose', '--publish', '0.0.0.0', '--port', '52000', '--http-port', '80').compose()
    assert content['services']['gateway']['ports'] == ['0.0.0.0:52000:51000', '0.0.0.0:80:51001']
    assert not [name for name, service in content['services'].items() if name != 'gateway' and 'ports' in service]


def test_what_is_no_address_is_refused(export, tmp_path):
    with pytest.raises(ValueError, match="--publish 'everywhere' is no address"):
        export('compose', '--publish', 'everywhere')
    assert not (tmp_path / 'docker-compose.yml').exists()
    ports = export('compose', '--publish', '::1').compose()['services']['gateway']['ports']
    assert ports[0] == '[::1]:51000:51000'


def test_generated_secrets_are_files_that_stay(export, tmp_path):
    written = export('compose', *POSTGRES, '--generate-secrets')
    folder = tmp_path / 'secrets'
    values = {path.name: path.read_text() for path in folder.iterdir()}
    assert values.keys() == {'token', 'postgres-password', 'database-url'}
    assert values['postgres-password'] in values['database-url']
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    text = (tmp_path / 'docker-compose.yml').read_text() + written.output
    assert not [value for value in values.values() if value in text]
    export('compose', *POSTGRES, '--generate-secrets')
    assert {path.name: path.read_text() for path in folder.iterdir()} == values


def test_secrets_are_not_written_where_others_may_read_them(export, tmp_path):
    (tmp_path / 'secrets').mkdir()
    (tmp_path / 'secrets').chmod(0o755)
    with pytest.raises(PermissionError, match='others may enter secrets, and read the secrets in it: chmod 700 secr'):
        export('compose', '--generate-secrets')
    assert [path.name for path in tmp_path.rglob('*')] == ['secrets']
    (tmp_path / 'secrets').chmod(0o700)
    export('compose', '--generate-secrets')
    assert (tmp_path / 'secrets' / 'token').is_file()


def test_missing_secrets_are_named(export):
    written = export('compose', *POSTGRES, '--objects', 's3', '--objects-url', 's3://b/p', '--generate-secrets')
    assert 'Missing: secrets/s3-credentials' in written.output
    assert 'Missing: secrets/token' not in written.output
    content = export('compose', *POSTGRES, '--database-url-secret', '/run/database-url').compose()
    assert content['secrets']['database-url'] == {'file': '/run/database-url'}
    assert 'postgres' not in content['services']


def test_replicas(export):
    services = export('compose', *POSTGRES, '--trainers', '2', '--encoders', '3').compose()['services']
    assert services['trainer']['deploy']['replicas'] == 2
    assert services['encoder']['deploy']['replicas'] == 3
    assert services['encoder']['environment']['FINETUNER_DEVICE'] == 'cpu'


def gpus_of(services):
    """The GPUs of the machine, by the service that reserves them."""
    found = {}
    for name, service in services.items():
        for device in service['deploy']['resources'].get('reservations', {}).get('devices', ()):
            assert service['deploy'].get('replicas', 1) == 1, 'all replicas of a service would have the same GPUs'
            assert (device['driver'], device['capabilities']) == ('nvidia', ['gpu'])
            found[name] = device['device_ids']
    return found


@pytest.mark.parametrize(
    ('options', 'gpus'),
    [
        ('--gpus 2', {'trainer': ['0', '1']}),
        ('--gpus 1 --encoders 3', {'trainer': ['0']}),
        ('--encoder-gpus 1 --encoders 2 --trainers 2', {'encoder-1': ['0'], 'encoder-2': ['1']}),
        (
            '--gpus 2 --trainers 2 --encoder-gpus 1 --encoders 3',
            {
                'trainer-1': ['0', '1'],
                'trainer-2': ['2', '3'],
                'encoder-1': ['4'],
                'encoder-2': ['5'],
                'encoder-3': ['6'],
            },
        ),
    ],
)
def test_each_replica_has_gpus_to_itself(export, options, gpus):
    """Docker gives whoever asks for a number of GPUs the first ones of the machine, whatever others have of them."""
    written = export('compose', *POSTGRES, *options.split())
    services = written.compose()['services']
    assert gpus_of(services) == gpus
    count = sum(map(len, gpus.values()))
    assert f'This machine needs {count} GPU' in written.output
    for name, ids in gpus.items():
        assert f'{name}: {", ".join(ids)}' in written.output
        assert services[name]['image'] == 'finetuner-gpu:latest'
        if name.startswith('trainer'):
            assert services[name]['environment']['FINETUNER_GPUS'] == str(len(ids))


def test_replicas_with_gpus_answer_to_the_name_that_the_gateway_calls(export):
    options = ['--gpus', '1', '--trainers', '2', '--encoder-gpus', '1', '--encoders', '2']
    content = export('compose', *POSTGRES, *options).compose()
    services = content['services']
    aliases = {name: one.get('networks', {}).get('default', {}).get('aliases', []) for name, one in services.items()}
    assert {name: found for name, found in aliases.items() if found} == {
        'trainer-1': ['trainer'],
        'trainer-2': ['trainer'],
        'encoder-1': ['encoder'],
        'encoder-2': ['encoder'],
    }
    arguments = services['gateway']['command']
    called = json.loads(arguments[arguments.index('--deployments-addresses') + 1])
    assert called['trainer'] == ['grpc://trainer:51000'] and called['encoder'] == ['grpc://encoder:51000']
    assert services['gateway']['depends_on'].keys() == services.keys() - {'gateway', 'postgres'}
    homes = {name: services[name]['volumes'][0]['source'] for name in ('trainer-1', 'trainer-2', 'encoder-2')}
    assert homes == {'trainer-1': 'trainer-home', 'trainer-2': 'trainer-home', 'encoder-2': 'encoder-home'}


def test_a_replica_does_not_take_the_name_of_another_executor(export, tmp_path):
    (tmp_path / 'flow.yml').write_text(
        'jtype: Flow\nexecutors: [{uses: FinetunerExecutor}, {name: encoder-2, uses: DatasetExecutor}]'
    )
    with pytest.raises(ValueError, match="executor 'encoder-2' has the name of a replica of 'encoder': give it"):
        export('compose', 'flow.yml', '--encoders', '2', '--encoder-gpus', '1')
    assert not (tmp_path / 'docker-compose.yml').exists()


def test_no_service_takes_all_memory_or_fills_the_disk_with_its_log(export):
    services = export('compose', *POSTGRES, '--gpus', '1').compose()['services']
    limits = {name: one['deploy']['resources']['limits'] for name, one in services.items()}
    assert limits == {
        'gateway': {'memory': '2g'},
        'dataset': {'memory': '4g'},
        'clicks': {'memory': '2g'},
        'trainer': {'memory': '16g'},
        'encoder': {'memory': '4g'},
        'postgres': {'memory': '1g'},
    }
    for one in services.values():
        assert one['logging'] == {'driver': 'json-file', 'options': {'max-size': '20m', 'max-file': '5'}}


@pytest.mark.parametrize(
    ('options', 'is_warned'),
    [
        ([], False),
        (['--publish', '0.0.0.0'], True),
        (['--publish', '::1'], False),
        (['--publish', '0.0.0.0', '--tls'], False),
    ],
)
def test_tokens_in_the_clear_are_warned_of(export, options, is_warned):
    assert ('can read tokens on their way: add --tls' in export('compose', *options).output) == is_warned


def test_what_is_missing_can_be_made_by_what_is_next(export):
    """The commands that are told, in their order, leave nothing missing."""
    options = ['train.yml', *POSTGRES, '--objects', 's3', '--objects-url', 's3://b/p', '--tls', '--port', '52000']
    first, *others = export('compose', *options).following()
    assert first == shlex.join(['finetuner', 'export', 'compose', *options, '--generate-secrets'])
    assert others == [
        'install -m 644 fullchain.pem secrets/tls.crt',
        'install -m 644 privkey.pem secrets/tls.key',
        'install -m 644 ~/.aws/credentials secrets/s3-credentials',
        'docker compose --file docker-compose.yml up --detach --wait',
    ]
    written = export(*shlex.split(first)[2:])
    assert written.following() == others
    for name in ('s3-credentials', 'tls.crt', 'tls.key'):
        (written.folder / 'secrets' / name).write_text('x')
    assert export('compose', *options).following() == others[-1:]


def test_variables_of_an_executor_are_those_of_the_flow_file(export, tmp_path):
    (tmp_path / 'flow.yml').write_text(
        'jtype: Flow\nexecutors: [{uses: TrainerExecutor, env: {FINETUNER_MAX_RUNS: 2}}, {uses: DatasetExecutor}]'
    )
    services = export('compose', 'flow.yml').compose()['services']
    assert services['trainer']['environment']['FINETUNER_MAX_RUNS'] == '2'
    assert 'FINETUNER_MAX_RUNS' not in services['dataset']['environment']


def test_dollars_are_not_variables_to_compose(export, tmp_path):
    (tmp_path / 'flow.yml').write_text(
        'jtype: Flow\nexecutors: [{uses: FinetunerExecutor, env: {FINETUNER_ENCODE_ROOTS: /data/$HOME}}]'
    )
    services = export('compose', 'flow.yml').compose()['services']
    assert services['encoder']['environment']['FINETUNER_ENCODE_ROOTS'] == '/data/$$HOME'


def test_another_file_is_not_overwritten(export, tmp_path):
    (tmp_path / 'docker-compose.yml').write_text('services: {}')
    with pytest.raises(FileExistsError, match='is not a file that finetuner export made'):
        export('compose')
    assert (tmp_path / 'docker-compose.yml').read_text() == 'services: {}'
