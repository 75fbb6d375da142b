"""The images, without a Docker engine: both files are linted, and what they do is done here."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from docarray.proto import DocListProto

from finetuner.client.channel import Channel
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import FinetunerServerError
from registry import Registry
from tests.integration.dockerfiles import copied, copy, install_code, stages, values, variables

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FILES = ['Dockerfile', 'Dockerfile.gpu']


@pytest.mark.parametrize('name', FILES)
def test_lint(name):
    done = subprocess.run([BIN / 'hadolint', '--no-color', ROOT / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert not done.stdout


@pytest.mark.parametrize('name', FILES)
def test_the_build_context_has_what_is_copied_and_little_else(name):
    allowed = [line[1:] for line in (ROOT / '.dockerignore').read_text().splitlines() if line.startswith('!')]
    assert copied(name) <= set(allowed)
    assert all((ROOT / path).exists() for path in copied(name))


@pytest.mark.parametrize('name', FILES)
def test_the_requirements_are_pinned(name):
    (requirements,) = re.findall(r'pip install -r (\S+)', (ROOT / name).read_text())
    lines = [line for line in (ROOT / requirements).read_text().splitlines() if line and line[0] not in ' #-']
    assert lines
    assert all('==' in line for line in lines)
    gpu = name.endswith('.gpu')
    assert any(line.startswith('onnxruntime-gpu==') for line in lines) == gpu
    assert any(line.startswith('onnxruntime==') for line in lines) != gpu


@pytest.mark.parametrize('name', FILES)
def test_runs_as_a_user_without_rights_and_without_telemetry(name):
    assert values(name, 'USER') == ['1000']
    assert variables(name)['JINA_OPTOUT_TELEMETRY'] == '1'
    kinds = [kind for kind, _ in stages(name)[-1]]
    assert kinds.index('USER') < kinds.index('ENTRYPOINT')


def test_all_packages_are_installed_whole_and_the_command_line_with_them(tmp_path):
    """Everything that runs from the image is in it: the code of all parts, Flow files, migrations, manifests."""
    installed = install_code('Dockerfile.gpu', tmp_path)
    for package in ('finetuner', 'registry', 'training', 'executors', 'flows'):
        sources = {path.relative_to(ROOT) for path in (ROOT / package).rglob('*') if path.is_file()}
        wanted = {path for path in sources if '__pycache__' not in path.parts and path.suffix != '.proto'}
        assert {path for path in wanted if not (installed / path).exists()} == set(), package
    environment = {**variables('Dockerfile.gpu'), 'PYTHONPATH': f'{installed}:{sysconfig.get_path("purelib")}'}
    done = subprocess.run(
        [sys.executable, '-S', installed / 'bin' / 'finetuner', 'export', 'compose', 'train.yml'],
        cwd=tmp_path,
        env={**environment, 'PATH': os.environ['PATH'], 'HOME': str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'gateway, dataset, trainer' in done.stdout
    assert (tmp_path / 'docker-compose.yml').exists()


def test_both_images_differ_in_what_a_gpu_needs_alone():
    cpu, gpu = variables('Dockerfile'), variables('Dockerfile.gpu')
    of_gpus = {'FINETUNER_DEVICE', 'NVIDIA_VISIBLE_DEVICES', 'NVIDIA_DRIVER_CAPABILITIES'}
    assert gpu.keys() - cpu.keys() == of_gpus
    assert cpu == {key: value for key, value in gpu.items() if key not in of_gpus}
    plain = [[step for step in stage if step[0] != 'ENV'] for stage in stages('Dockerfile')]
    other = [[step for step in stage if step[0] != 'ENV'] for stage in stages('Dockerfile.gpu')]
    assert json.loads(json.dumps(other).replace('requirements-gpu.txt', 'requirements.txt')) == json.loads(
        json.dumps(plain)
    )


@pytest.mark.slow
def test_the_entry_point_serves_a_mounted_artifact(service, finished_run, tmp_path, free_port):
    """What the image copies is all that the executor needs; the health check sees it, and a SIGTERM ends it."""
    app, mounted, home = tmp_path / 'app', tmp_path / 'mnt', tmp_path / 'home'
    for folder in (app, mounted, home):
        folder.mkdir()
    installed = install_code('Dockerfile', tmp_path)
    for value in values('Dockerfile', 'COPY'):
        if not value.startswith('--from='):
            source, target = value.split()
            copy(ROOT / source, app / target / source)
    with Registry.open(service.folder / 'home') as registry:
        artifact = registry.get_artifact(registry.get_account().id, finished_run['artifact_id'])
        shutil.copy(registry.artifact_file(artifact), mounted / 'model.zip')

    environment = {
        **variables('Dockerfile'),
        'PATH': os.environ['PATH'],
        'HOME': str(home),
        # without `site` (-S) the project's own installation is not found, only the copy is
        'PYTHONPATH': os.pathsep.join([str(installed), sysconfig.get_path('purelib')]),
        'FINETUNER_HOME': str(home / 'data'),
        'FINETUNER_CONFIG_DIR': str(home / 'data' / 'config'),
        'XDG_CACHE_HOME': str(home / 'data' / 'cache'),
        'FINETUNER_ARTIFACT': str(mounted / 'model.zip'),
    }
    (entry_point,) = values('Dockerfile', 'ENTRYPOINT')
    program, *arguments = json.loads(entry_point)
    serve = [sys.executable, '-S', str(BIN / program), *arguments, '--port', str(free_port)]
    (check,) = values('Dockerfile', 'HEALTHCHECK')
    program, *arguments = json.loads(check[check.index('[') :])
    assert arguments[-1] == '51000'
    is_healthy = [sys.executable, '-S', *arguments[:-1], str(free_port)]

    def check_health() -> subprocess.CompletedProcess:
        return subprocess.run(is_healthy, cwd=app, env=environment, capture_output=True, text=True, check=False)

    unhealthy = check_health()
    assert unhealthy.returncode == 1
    assert 'UNAVAILABLE' in unhealthy.stderr
    log = tmp_path / 'log.txt'
    with log.open('w') as file:
        process = subprocess.Popen(serve, cwd=app, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while check_health().returncode != 0:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        channel = Channel(f'grpc://127.0.0.1:{free_port}')
        message = DocumentArray([Document(text='some text')]).to_protobuf().SerializeToString()
        answer = DocumentArray.from_protobuf(DocListProto.FromString(channel.call('/encode', {}, message)))
        assert answer.embeddings.shape == (1, 32)
        with pytest.raises(FinetunerServerError, match='unknown endpoint: FinetunerExecutor has /encode'):
            channel.call('/nope', {}, message)
        channel.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
