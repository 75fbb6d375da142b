import hashlib
import os

import pytest

from finetuner.excepts import ArtifactError, RunFailedError, RunInProgressError
from registry import Registry


@pytest.fixture
def artifact(registry, account, started_run, artifact_path):
    run = started_run()
    registry.finish_run(run.id, artifact_path, {}, {})
    return registry.get_artifact(account, run.artifact_id)


def test_an_artifact_is_what_the_run_left(registry, artifact, artifact_path):
    content = artifact_path.read_bytes()
    assert (artifact.name, artifact.size, artifact.public) == ('run', len(content), False)
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert registry.artifact_file(artifact).read_bytes() == content


def test_an_artifact_is_read_piece_by_piece(registry, artifact, artifact_path):
    pieces, offset = [], 0
    while piece := registry.read_artifact(artifact, offset, 30_000):
        pieces.append(piece)
        offset += len(piece)
    assert [len(piece) for piece in pieces] == [30_000, 30_000, 30_000, 10_000]
    assert b''.join(pieces) == artifact_path.read_bytes()


@pytest.mark.parametrize('offset, length', [(-1, 10), (100_001, 10), (0, 0), (0, -1)])
def test_reads_are_bounded(registry, artifact, offset, length):
    with pytest.raises(ArtifactError, match='of 100000 bytes cannot be read at'):
        registry.read_artifact(artifact, offset, length)


def test_a_read_never_takes_more_than_16_mib(registry, account, started_run, tmp_path):
    (tmp_path / 'large.zip').write_bytes(bytes(20 << 20))
    run = started_run()
    registry.finish_run(run.id, tmp_path / 'large.zip', {}, {})
    artifact = registry.get_artifact(account, run.artifact_id)
    assert len(registry.read_artifact(artifact, 0, 10**12)) == 16 << 20


def test_only_the_owner_reads_a_private_artifact(registry, artifact):
    other = registry.create_account('other').id
    for reader in (other, None):
        with pytest.raises(
            ArtifactError, match=f"There is no artifact '{artifact.id}' that you may read: .* GET /api/v1/runs"
        ):
            registry.get_artifact(reader, artifact.id)


def test_anyone_reads_a_public_artifact(registry, started_run, artifact_path):
    run = started_run(public=True)
    registry.finish_run(run.id, artifact_path, {}, {})
    other = registry.create_account('other').id
    for reader in (other, None):
        assert registry.get_artifact(reader, run.artifact_id).public


def test_an_artifact_that_is_not_there_yet(registry, account, started_run):
    run = started_run()
    with pytest.raises(RunInProgressError, match="'run' has no artifact yet, it is STARTED"):
        registry.get_artifact(account, run.artifact_id)
    registry.fail_run(run.id, 'Out of memory')
    with pytest.raises(RunFailedError, match="'run' left no artifact, it failed: Out of memory"):
        registry.get_artifact(account, run.artifact_id)
    for reader in (registry.create_account('other').id, None):
        with pytest.raises(ArtifactError, match='There is no artifact'):
            registry.get_artifact(reader, run.artifact_id)


@pytest.mark.parametrize('artifact_id', ['', '../../etc/passwd', 'f' * 24, None])
def test_an_unknown_artifact(registry, account, artifact_id):
    with pytest.raises(ArtifactError, match='There is no artifact'):
        registry.get_artifact(account, artifact_id)


def test_an_altered_or_missing_artifact_is_refused(registry, artifact):
    path = registry.artifact_file(artifact)
    path.chmod(0o600)
    path.write_bytes(b'altered')
    with pytest.raises(ArtifactError, match='is not what was stored'):
        registry.artifact_file(artifact)
    path.unlink()
    with pytest.raises(ArtifactError, match='is missing'):
        registry.artifact_file(artifact)
    with pytest.raises(ArtifactError, match='is missing'):
        registry.read_artifact(artifact, 0, 10)


def test_a_remote_store(artifact_path):
    with Registry.open(objects_url=f'memory://bucket-{os.getpid()}/artifacts') as registry:
        run, _ = registry.create_run(registry.get_account().id, 'default', 'run', {})
        registry.start_run(run.id, 'host:1')
        registry.finish_run(run.id, artifact_path, {}, {})
        artifact = registry.get_artifact(run.account_id, run.artifact_id)
        content = artifact_path.read_bytes()
        assert registry.read_artifact(artifact, 99_990, 1000) == content[-10:]
        assert registry.artifact_file(artifact).read_bytes() == content
        registry.objects.delete(artifact.key)
        with pytest.raises(ArtifactError, match='is missing') as raised:
            registry.read_artifact(artifact, 0, 10)
        # a URL may hold credentials
        assert 'bucket' not in str(raised.value)
        # the copy on this machine is still whole
        assert registry.artifact_file(artifact).read_bytes() == content
