"""What the manifests mean to a cluster: names that fit each other, rights, secrets, stops and replicas."""

import json
import re
import stat
from pathlib import Path

import pytest
import yaml

OPERATIONS = Path(__file__).parents[3] / 'docs' / 'operations.md'
S3 = ['--objects', 's3', '--objects-url', 's3://bucket/prefix']
SCALED = ['--database', 'postgres', *S3, '--trainers', '2', '--encoders', '3', '--gpus', '1']


def workloads(written):
    return {
        one['metadata']['labels']['app.kubernetes.io/component']: one
        for one in written.manifests()
        if one['kind'] in ('Deployment', 'StatefulSet')
    }


def pod(workload):
    return workload['spec']['template']['spec']


def container(workload):
    (only,) = pod(workload)['containers']
    return only


def sizes():
    """What docs/operations.md says is asked for, and the most: memory by part."""
    text = OPERATIONS.read_text(encoding='utf-8')
    rows = re.findall(r'^\| (\w+) \| [\d.]+ CPU, (\d+) ([MG]iB) \| (\d+) ([MG]iB) \|', text, re.MULTILINE)
    return {
        name.lower().replace('postgresql', 'postgres'): (f'{asked}{unit[:2]}', f'{most}{of[:2]}')
        for name, asked, unit, most, of in rows
    }


def test_memory_is_what_the_documentation_says(export):
    for flow in ('finetuner.yml', 'search.yml'):
        for name, one in workloads(export('kubernetes', flow, '--database', 'postgres')).items():
            resources = container(one)['resources']
            found = resources['requests']['memory'], resources['limits']['memory']
            assert found == sizes()[name], name


@pytest.mark.parametrize(
    'options', [[], SCALED, ['--database', 'postgres'], ['--tls', '--ingress-host', 'x.example.com']]
)
def test_all_that_is_named_is_there(export, options):
    written = export('kubernetes', *options, '--generate-secrets')
    of_kind = {}
    for one in written.manifests():
        of_kind.setdefault(one['kind'], {})[one['metadata']['name']] = one
    listed = yaml.safe_load((written.folder / 'kubernetes' / 'kustomization.yaml').read_text())['resources']
    there = {path.name for path in (written.folder / 'kubernetes').glob('*.yaml')} - {'kustomization.yaml'}
    assert set(listed) == there
    generated = of_kind['Secret']['finetuner-secrets']['stringData']
    for component, one in workloads(written).items():
        template = one['spec']['template']
        assert one['spec']['selector']['matchLabels'].items() <= template['metadata']['labels'].items()
        (service,) = [
            service
            for service in of_kind['Service'].values()
            if service['spec']['selector'].items() <= template['metadata']['labels'].items()
        ]
        ports = {port['name'] for port in container(one)['ports']}
        assert {port['targetPort'] for port in service['spec']['ports']} == ports, component
        if one['kind'] == 'StatefulSet':
            assert one['spec']['serviceName'] == service['metadata']['name']
        claims = {claim['metadata']['name'] for claim in one['spec'].get('volumeClaimTemplates', ())}
        volumes = {volume['name']: volume for volume in pod(one)['volumes']}
        assert {mount['name'] for mount in container(one)['volumeMounts']} == claims | volumes.keys()
        for volume in volumes.values():
            if 'persistentVolumeClaim' in volume:
                assert volume['persistentVolumeClaim']['claimName'] in of_kind['PersistentVolumeClaim']
            for source in volume.get('projected', {}).get('sources', ()):
                if source['secret']['name'] == 'finetuner-secrets':
                    assert {item['key'] for item in source['secret']['items']} <= generated.keys()
    arguments = container(workloads(written)['gateway'])['args']
    addresses = json.loads(arguments[arguments.index('--deployments-addresses') + 1])
    for (address,) in addresses.values():
        assert of_kind['Service'][address.removeprefix('grpc://').removesuffix(':51000')]


def test_pods_have_no_rights(export):
    written = export('kubernetes', '--database', 'postgres')
    for one in workloads(written).values():
        assert pod(one)['securityContext']['runAsNonRoot']
        assert pod(one)['securityContext']['runAsUser'] > 0
        assert pod(one)['securityContext']['seccompProfile'] == {'type': 'RuntimeDefault'}
        assert pod(one)['automountServiceAccountToken'] is False
        assert container(one)['securityContext'] == {
            'allowPrivilegeEscalation': False,
            'readOnlyRootFilesystem': True,
            'capabilities': {'drop': ['ALL']},
        }


@pytest.mark.parametrize('tls', [False, True])
def test_an_ingress_speaks_what_the_gateway_speaks(export, tls):
    written = export('kubernetes', '--ingress-host', 'embed.example.com', *(['--tls'] if tls else []))
    annotations = written.manifest('Ingress', 'finetuner-gateway')['metadata']['annotations']
    assert annotations['nginx.ingress.kubernetes.io/proxy-body-size'] == str(64 << 20)
    assert int(annotations['nginx.ingress.kubernetes.io/proxy-read-timeout']) >= 3600
    assert annotations['nginx.ingress.kubernetes.io/proxy-buffering'] == 'off'
    assert annotations.get('nginx.ingress.kubernetes.io/backend-protocol') == ('HTTPS' if tls else None)
    assert ('whoever listens on the way to embed.example.com can read tokens' in written.output) == (not tls)
    (grpc,) = [
        port for port in written.manifest('Service', 'finetuner-gateway')['spec']['ports'] if port['name'] == 'grpc'
    ]
    assert grpc.get('appProtocol') == (None if tls else 'kubernetes.io/h2c')


def test_an_ingress_takes_what_the_gateway_takes(export, tmp_path):
    (tmp_path / 'flow.yml').write_text(
        'jtype: Flow\ngateway: {env: {FINETUNER_MAX_BODY_BYTES: 1000000}}\nexecutors: [{uses: FinetunerExecutor}]'
    )
    written = export('kubernetes', 'flow.yml', '--ingress-host', 'embed.example.com')
    annotations = written.manifest('Ingress', 'finetuner-gateway')['metadata']['annotations']
    assert annotations['nginx.ingress.kubernetes.io/proxy-body-size'] == '1000000'


GI = 2**30


@pytest.mark.parametrize('options', [[], ['--database', 'postgres'], SCALED, ['encode.yml']])
def test_no_pod_fills_the_disk_of_its_machine(export, options):
    written = export('kubernetes', *options)
    for component, one in workloads(written).items():
        assert 'ephemeral-storage' in container(one)['resources']['requests'], component
        empty = [volume for volume in pod(one)['volumes'] if 'emptyDir' in volume]
        assert all('sizeLimit' in volume['emptyDir'] for volume in empty), component


@pytest.mark.parametrize(
    ('options', 'bytes_of_home'), [([], 50 * GI), (SCALED, 20 * GI), ([*SCALED, '--scratch-size', '40Gi'], 40 * GI)]
)
def test_caches_fit_into_the_volume_that_they_are_in(export, options, bytes_of_home):
    found = workloads(export('kubernetes', *options))
    for component in ('dataset', 'trainer', 'encoder'):
        variables = {one['name']: one['value'] for one in container(found[component])['env']}
        limits = [int(variables['FINETUNER_ARTIFACT_CACHE_BYTES'])] * 3
        limits += [int(variables['FINETUNER_FEATURE_CACHE_BYTES'])] if component == 'trainer' else []
        assert 0.4 * bytes_of_home < sum(limits) < 0.7 * bytes_of_home


def test_what_holds_copies_alone_is_small(export):
    found = workloads(export('kubernetes', *SCALED))
    for component in ('dataset', 'trainer'):
        (claim,) = found[component]['spec']['volumeClaimTemplates']
        assert claim['spec']['resources']['requests']['storage'] == '20Gi'
    (claim,) = found['postgres']['spec']['volumeClaimTemplates']
    assert claim['spec']['resources']['requests']['storage'] == '50Gi'
    (home,) = [volume for volume in pod(found['encoder'])['volumes'] if volume['name'] == 'home']
    assert home['emptyDir'] == {'sizeLimit': '20Gi'}


def test_programs_can_write_to_their_home(export):
    """Jina makes folders there as it is imported, and the file system is read-only."""
    written = export('kubernetes')
    home = written.manifest('ConfigMap', 'finetuner-config')['data']['HOME']
    for one in workloads(written).values():
        assert home in {mount['mountPath'] for mount in container(one)['volumeMounts'] if mount['name'] == 'tmp'}


def test_manifests_hold_no_secret_unless_asked(export):
    written = export('kubernetes', *SCALED)
    assert not [one for one in written.manifests() if one['kind'] == 'Secret']
    assert 'create secret generic finetuner-secrets --from-file=token' in written.output
    assert 'create secret generic finetuner-s3 --from-file=s3-credentials' in written.output


def test_generated_secrets_stay_what_they_are(export):
    written = export('kubernetes', '--database', 'postgres', '--generate-secrets')
    path = written.folder / 'kubernetes' / 'secret.yaml'
    first = path.read_text()
    values = written.manifest('Secret', 'finetuner-secrets')['stringData']
    assert len(values['token']) >= 32
    assert values['postgres-password'] in values['database-url']
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert values['token'] not in written.output
    for arguments in (['--generate-secrets'], []):
        export('kubernetes', '--database', 'postgres', *arguments)
        assert path.read_text() == first
        listed = yaml.safe_load((written.folder / 'kubernetes' / 'kustomization.yaml').read_text())['resources']
        assert 'secret.yaml' in listed


def listed(written):
    return yaml.safe_load((written.folder / 'kubernetes' / 'kustomization.yaml').read_text())['resources']


@pytest.mark.parametrize('arguments', [[], ['--generate-secrets']])
def test_secrets_move_with_the_rest_to_another_namespace(export, arguments):
    values = export('kubernetes', '--generate-secrets').manifest('Secret', 'finetuner-secrets')['stringData']
    written = export('kubernetes', '--namespace', 'search', *arguments)
    assert {one['metadata'].get('namespace', 'search') for one in written.manifests()} == {'search'}
    assert written.manifest('Secret', 'finetuner-secrets')['stringData'] == values
    path = written.folder / 'kubernetes' / 'secret.yaml'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and 'secret.yaml' in listed(written)
    assert 'secret.yaml from the namespace finetuner to search' in written.output
    assert 'Moved' not in export('kubernetes', '--namespace', 'search', *arguments).output


def test_secrets_that_an_earlier_export_did_not_need_are_missing_and_made(export):
    token = export('kubernetes', '--generate-secrets').manifest('Secret', 'finetuner-secrets')['stringData']['token']
    written = export('kubernetes', '--database', 'postgres')
    assert 'Missing: the Secret finetuner-secrets' in written.output and 'postgres-password:' in written.output
    assert '    token:' not in written.output
    first, last = written.following()
    assert first == 'finetuner export kubernetes --database postgres --generate-secrets'
    made = export(*first.split()[2:]).manifest('Secret', 'finetuner-secrets')['stringData']
    assert made.keys() == {'token', 'postgres-password', 'database-url'} and made['token'] == token
    assert export('kubernetes', '--database', 'postgres').following() == [last]


def test_a_secret_file_that_is_gone_is_no_part_of_the_deployment(export):
    written = export('kubernetes', '--generate-secrets')
    (written.folder / 'kubernetes' / 'secret.yaml').unlink()
    written = export('kubernetes')
    assert 'secret.yaml' not in listed(written)
    assert 'kubectl --namespace finetuner create secret generic finetuner-secrets --from-file=token' in written.output


def test_what_is_missing_can_be_made_by_what_is_next(export):
    assert export('kubernetes', *S3, '--tls', '--namespace', 'search').following() == [
        f'finetuner export kubernetes {" ".join(S3)} --tls --namespace search --generate-secrets',
        'kubectl apply --filename kubernetes/namespace.yaml',
        'kubectl --namespace search create secret generic finetuner-tls --from-file=tls.crt --from-file=tls.key',
        'kubectl --namespace search create secret generic finetuner-s3 --from-file=s3-credentials',
        'kubectl apply --kustomize kubernetes',
    ]


def test_a_damaged_secret_file_is_told(export):
    path = export('kubernetes', '--generate-secrets').folder / 'kubernetes' / 'secret.yaml'
    path.write_text(path.read_text().replace('stringData', 'data'))
    with pytest.raises(ValueError, match='secret.yaml is not the Secret that an export wrote'):
        export('kubernetes')


def test_grace_is_longer_than_what_happens_in_it(export):
    for component, one in workloads(export('kubernetes')).items():
        (command,) = [container(one)['lifecycle']['preStop']['exec']['command']]
        assert command[0] == 'sleep'
        drain, checkpoint = 20, 60 if component == 'trainer' else 0
        assert pod(one)['terminationGracePeriodSeconds'] > int(command[1]) + drain + checkpoint


def test_a_search_is_gone_before_another_begins(export):
    """Each would know of its own items alone."""
    flow = Path(__file__).parents[3] / 'flows' / 'search.yml'
    assert workloads(export('kubernetes', str(flow)))['search']['spec']['strategy'] == {'type': 'Recreate'}


def test_one_machine_while_the_state_is_on_one(export):
    written = export('kubernetes')
    for component, one in workloads(written).items():
        labels = one['spec']['template']['metadata']['labels']
        terms = pod(one).get('affinity', {}).get('podAffinity', {})
        if component == 'gateway':
            assert not terms
            continue
        (term,) = terms['requiredDuringSchedulingIgnoredDuringExecution']
        assert term['labelSelector']['matchLabels'].items() <= labels.items(), 'the first one must find itself'
        assert term['topologyKey'] == 'kubernetes.io/hostname'
    assert workloads(written)['trainer']['spec']['strategy'] == {'type': 'Recreate'}
    assert written.manifest('PersistentVolumeClaim', 'finetuner-home')['spec']['accessModes'] == ['ReadWriteOnce']


def test_many_machines_with_postgres_and_s3(export):
    written = export('kubernetes', *SCALED)
    found = workloads(written)
    assert {component: one['spec']['replicas'] for component, one in found.items()} == {
        'gateway': 1,
        'dataset': 1,
        'clicks': 1,
        'trainer': 2,
        'encoder': 3,
        'postgres': 1,
    }
    assert not [component for component, one in found.items() if 'affinity' in pod(one)]
    assert found['trainer']['kind'] == 'StatefulSet'
    assert container(found['trainer'])['resources']['limits']['nvidia.com/gpu'] == '1'
    assert container(found['trainer'])['image'] == 'finetuner-gpu:latest'
    assert 'nvidia.com/gpu' not in container(found['encoder'])['resources']['limits']
    assert 'PersistentVolumeClaim' not in {one['kind'] for one in written.manifests()}


def test_replicas_are_found_by_a_name_that_means_all_of_them(export):
    written = export('kubernetes', '--encoders', '3')
    assert written.manifest('Service', 'finetuner-encoder')['spec']['clusterIP'] == 'None'
    arguments = container(workloads(written)['gateway'])['args']
    options = json.loads(arguments[arguments.index('--grpc-channel-options') + 1])
    assert options['grpc.lb_policy_name'] == 'round_robin'
    assert options['grpc.keepalive_time_ms'] == 30000, 'those of the Flow are kept'


def test_executors_are_reached_by_the_gateway_alone(export):
    written = export('kubernetes', '--database', 'postgres')
    policies = {one['metadata']['name']: one['spec'] for one in written.manifests() if one['kind'] == 'NetworkPolicy'}
    assert policies.keys() == {
        f'finetuner-{name}' for name in ('gateway', 'dataset', 'clicks', 'trainer', 'encoder', 'postgres')
    }
    gateway = workloads(written)['gateway']['spec']['template']['metadata']['labels']
    for name in ('dataset', 'clicks', 'trainer', 'encoder'):
        (rule,) = policies[f'finetuner-{name}']['ingress']
        (source,) = rule['from']
        assert source['podSelector']['matchLabels'].items() <= gateway.items()
    (rule,) = policies['finetuner-postgres']['ingress']
    clients = rule['from'][0]['podSelector']['matchLabels']
    allowed = {
        component
        for component, one in workloads(written).items()
        if clients.items() <= one['spec']['template']['metadata']['labels'].items()
    }
    assert allowed == {'dataset', 'clicks', 'trainer', 'encoder'}


def test_what_an_earlier_export_had_goes_and_what_is_not_ours_stays(export, tmp_path):
    export('kubernetes', '--database', 'postgres')
    mine = tmp_path / 'kubernetes' / 'mine.yaml'
    mine.write_text('kind: Mine')
    export('kubernetes')
    assert not (tmp_path / 'kubernetes' / 'postgres.yaml').exists()
    assert mine.exists()
    (tmp_path / 'kubernetes' / 'gateway.yaml').write_text('kind: Mine')
    with pytest.raises(FileExistsError, match='gateway.yaml is not a file that finetuner export made'):
        export('kubernetes')


def test_an_executor_that_is_away_takes_no_traffic_from_the_others(export):
    gateway = container(workloads(export('kubernetes', '--generate-secrets'))['gateway'])
    assert gateway['readinessProbe']['httpGet']['path'] == '/health/live'  # /health/ready asks every executor
