"""Objects in S3: a real server of its protocol, in this process."""

import errno
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from finetuner.excepts import ArtifactError, DataError, RegistryError, UnavailableError
from registry import Registry
from registry.names import new_id
from registry.objects import ObjectStore
from training.errors import is_passing, passing_reason

MIB = 1 << 20
SLOW_DOWN = ('SlowDown', 503)


class S3Server:
    """
    :param fails: is asked about each request; True answers `failure`, a code and a status.
    :param seen: method, path and query, and range, of each request.
    """

    def __init__(self) -> None:
        self.fails: Callable[[Request], bool] = lambda request: False
        self.failure = SLOW_DOWN
        self.seen: list[tuple[str, str, str | None]] = []
        self._moto = DomainDispatcherApplication(create_backend_app)
        logging.getLogger('werkzeug').setLevel(logging.ERROR)
        self._server = make_server('127.0.0.1', 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f'http://127.0.0.1:{self._server.port}'

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        self.seen.append((request.method, request.full_path, request.headers.get('Range')))
        if self.fails(request):
            request.get_data()
            code, status = self.failure
            body = f'<Error><Code>{code}</Code><Message>{code} at {self.url}</Message></Error>'
            return Response(body, status, content_type='application/xml')(environ, start_response)
        return self._moto(environ, start_response)


@pytest.fixture(scope='module')
def server():
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def bucket(server, monkeypatch):
    """A new bucket, where the environment says as for every AWS tool where it is and who asks."""
    server.fails, server.failure, server.seen = lambda request: False, SLOW_DOWN, []
    for name, value in {
        'AWS_ACCESS_KEY_ID': 'key',
        'AWS_SECRET_ACCESS_KEY': 's3cret',
        'AWS_DEFAULT_REGION': 'us-east-1',
        'AWS_ENDPOINT_URL': server.url,
        'AWS_MAX_ATTEMPTS': '2',
    }.items():
        monkeypatch.setenv(name, value)
    name = f'bucket-{new_id()}'
    boto3.client('s3').create_bucket(Bucket=name)
    server.seen.clear()
    return name


@pytest.fixture
def url(bucket):
    return f's3://{bucket}/a/prefix'


@pytest.fixture
def keys(bucket):
    """What is in the bucket: objects, and uploads that have not ended."""

    def find():
        client = boto3.client('s3')
        objects = [item['Key'] for item in client.list_objects_v2(Bucket=bucket).get('Contents', [])]
        uploads = [item['Key'] for item in client.list_multipart_uploads(Bucket=bucket).get('Uploads', [])]
        return objects, uploads

    return find


@pytest.fixture
def make_file(tmp_path):
    def make(size):
        path = tmp_path / f'file-{size}'
        path.write_bytes(os.urandom(size))
        return path

    return make


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize('size', [0, 1000, 20 * MIB])
def test_what_was_put_is_fetched_read_and_deleted(url, keys, make_file, tmp_path, size):
    store, path = ObjectStore(url), make_file(size)
    store.put(path, 'artifacts/one.zip')
    assert keys() == (['a/prefix/artifacts/one.zip'], [])
    content = path.read_bytes()
    fetched = store.fetch('artifacts/one.zip', sha256(path), tmp_path / 'copies')
    assert fetched.read_bytes() == content
    for offset, length in ((0, 10), (size // 2, 100), (max(0, size - 5), 100)):
        if size:
            assert store.read('artifacts/one.zip', offset, length) == content[offset : offset + length]
    store.delete('artifacts/one.zip')
    store.delete('artifacts/one.zip')
    assert keys() == ([], [])


def test_a_range_is_one_request_of_its_bytes(server, url, make_file):
    store = ObjectStore(url)
    store.put(make_file(100_000), 'one')
    server.seen.clear()
    assert len(store.read('one', 500, 100)) == 100
    [(method, _, wanted)] = server.seen
    assert (method, wanted) == ('GET', 'bytes=500-599')


def test_nothing_is_answered_from_a_cache(url, make_file, tmp_path):
    first, second, path = ObjectStore(url), ObjectStore(url), make_file(1000)
    for store, other in ((first, second), (second, first)):
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                other.read('one', 0, 10)
            with pytest.raises(DataError, match='one is missing in the object store'):
                other.fetch('one', sha256(path), tmp_path / 'copies')
            store.put(path, 'one')
            assert other.read('one', 0, 10) == path.read_bytes()[:10]
            assert other.fetch('one', sha256(path), tmp_path / 'copies').unlink() is None
            store.delete('one')


def test_a_server_that_stumbles_is_asked_again(server, url, make_file, tmp_path):
    store, path, stumbles = ObjectStore(url), make_file(17 * MIB), []

    def fails(request):
        """The first request of each kind."""
        kind = (request.method, request.path, request.query_string)
        stumbles.append(kind)
        return stumbles.count(kind) == 1

    server.fails = fails
    store.put(path, 'one')
    assert store.fetch('one', sha256(path), tmp_path / 'copies').read_bytes() == path.read_bytes()
    assert len(store.read('one', 5, 10)) == 10
    store.delete('one')
    assert len(stumbles) > 10


def test_an_upload_that_is_cut_off_leaves_nothing(server, url, keys, make_file, monkeypatch):
    monkeypatch.setattr('s3fs.core.S3FileSystem.retries', 1)
    store = ObjectStore(url)
    server.fails = lambda request: request.args.get('partNumber') == '2'
    with pytest.raises(UnavailableError):
        store.put(make_file(17 * MIB), 'one')
    assert keys() == ([], [])
    with pytest.raises(FileNotFoundError):
        store.read('one', 0, 1)


@pytest.fixture
def attempts(make_file, tmp_path):
    """Everything that is asked of a store."""
    path = make_file(1000)

    def attempt(store):
        return {
            'put': lambda: store.put(path, 'one'),
            'fetch': lambda: store.fetch('one', sha256(path), tmp_path / 'copies'),
            'read': lambda: store.read('one', 0, 10),
            'delete': lambda: store.delete('one'),
        }

    return attempt


AWAY = 'The object store cannot be reached: try again in a moment'


def check_is_told_to_be_away(attempts):
    for name, attempt in attempts.items():
        with pytest.raises(UnavailableError) as raised:
            attempt()
        assert str(raised.value) == AWAY, name
        assert is_passing(raised.value) and passing_reason(raised.value) == AWAY


def test_a_store_that_goes_away_is_told_without_its_address(bucket, attempts, monkeypatch):
    gone = S3Server()
    monkeypatch.setenv('AWS_ENDPOINT_URL', gone.url)
    monkeypatch.setenv('AWS_MAX_ATTEMPTS', '1')
    store = ObjectStore(f's3://{bucket}/a')
    gone.close()
    check_is_told_to_be_away(attempts(store))


def test_a_store_that_answers_with_errors_is_told_without_its_address(server, url, attempts, monkeypatch):
    monkeypatch.setattr('s3fs.core.S3FileSystem.retries', 1)
    monkeypatch.setenv('AWS_MAX_ATTEMPTS', '1')
    store = ObjectStore(url)
    server.fails = lambda request: True
    check_is_told_to_be_away(attempts(store))


def test_a_store_that_refuses_is_told_without_its_address(server, url, attempts, monkeypatch):
    store = ObjectStore(url)
    server.fails, server.failure = lambda request: True, ('AccessDenied', 403)
    check_is_told_to_be_away(attempts(store))


def test_a_disk_that_is_full_is_told_as_such(url, make_file, tmp_path, monkeypatch):
    store, path = ObjectStore(url), make_file(1000)
    store.put(path, 'one')
    monkeypatch.setattr('s3fs.core.open', lambda *_: Full(), raising=False)
    with pytest.raises(OSError, match='No space left on device'):
        store.fetch('one', sha256(path), tmp_path / 'copies')
    with pytest.raises(NotADirectoryError):
        store.fetch('one', sha256(path), path / 'copies')


class Full(io.BytesIO):
    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


KILLED_IN_UPLOAD = """
    import json, signal
    from pathlib import Path
    from registry import Registry
    from s3fs import S3FileSystem

    run_id, artifact, target = arguments
    os.environ.update(json.loads(target))
    registry = Registry.open()
    S3FileSystem._upload_file_part_concurrent = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    registry.finish_run(run_id, Path(artifact), {}, {})
"""


def test_an_upload_that_was_killed_is_removed_at_the_next_start(url, keys, make_file, script, monkeypatch):
    monkeypatch.setenv('FINETUNER_OBJECTS_URL', url)
    with Registry.open() as registry:
        run, _ = registry.create_run(registry.get_account().id, 'default', 'run', {})
        registry.start_run(run.id, 'host:1')
    aws = {name: value for name, value in os.environ.items() if name.startswith('AWS_')}
    process = script(KILLED_IN_UPLOAD, run.id, make_file(17 * MIB), json.dumps(aws))
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [len(found) for found in keys()] == [0, 1]
    Registry.open().close()
    assert keys() == ([], [])


def test_threads_share_a_store(url, make_file, tmp_path):
    store, path = ObjectStore(url), make_file(300_000)
    store.put(path, 'one')
    digest = sha256(path)
    with ThreadPoolExecutor(8) as pool:
        fetched = list(pool.map(lambda _: store.fetch('one', digest, tmp_path / 'copies'), range(16)))
        pieces = list(pool.map(lambda at: store.read('one', at, 10), range(50)))
    assert set(fetched) == {tmp_path / 'copies' / 'one'}
    assert [file.name for file in (tmp_path / 'copies').iterdir()] == ['one']
    assert pieces == [path.read_bytes()[at : at + 10] for at in range(50)]


FORK = """
import os, sys
from registry.objects import ObjectStore

store = ObjectStore(sys.argv[1])
os.write(1, store.read('one', 0, 10))
child = os.fork()
if child == 0:
    os.write(1, store.read('one', 10, 5))
    os.write(1, ObjectStore(sys.argv[1]).read('one', 15, 5))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
os.write(1, store.read('one', 20, 10))
"""


def test_a_fork_uses_the_store_of_its_parent(url, make_file):
    store, path = ObjectStore(url), make_file(1000)
    store.put(path, 'one')
    done = subprocess.run([sys.executable, '-c', FORK, url], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == path.read_bytes()[:30]


def test_a_bucket_that_is_not_there_is_told(server, bucket):
    with pytest.raises(RegistryError, match="There is no bucket 'no-such-bucket' for the objects: make it first"):
        Registry.open(objects_url='s3://no-such-bucket/prefix')
    assert [item['Name'] for item in boto3.client('s3').list_buckets()['Buckets'] if 'no-such' in item['Name']] == []


def test_a_server_that_is_not_there_is_told(bucket, monkeypatch):
    monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://127.0.0.1:1')
    with pytest.raises(RegistryError, match=f"The bucket '{bucket}' of the objects cannot be reached: .*127.0.0.1:1"):
        Registry.open(objects_url=f's3://{bucket}')


def test_missing_credentials_are_told(bucket, monkeypatch):
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
        monkeypatch.delenv(name)
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    with pytest.raises(RegistryError, match='cannot be reached: Unable to locate credentials'):
        Registry.open(objects_url=f's3://{bucket}')


@pytest.mark.parametrize('url', ['nowhere://bucket', 's3+x://bucket'])
def test_an_unknown_kind_of_store_is_told(url):
    with pytest.raises(RegistryError, match='The URL of the objects cannot be used: Protocol not known'):
        Registry.open(objects_url=url)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 's3fs', None)
    monkeypatch.delitem(sys.modules['fsspec.registry']._registry, 's3', raising=False)
    with pytest.raises(RegistryError, match=r'Objects at s3:// need .* pip install "finetuner\[s3\]"'):
        Registry.open(objects_url='s3://bucket')


class TestEverything:
    """From documents to an artifact and back to nothing, on PostgreSQL and S3."""

    @pytest.fixture
    def database_kind(self):
        return 'postgresql'

    def test_the_way_of_the_data(self, url, keys, database, documents, make_file, monkeypatch, tmp_path):
        monkeypatch.setenv('FINETUNER_OBJECTS_URL', url)
        with Registry.open() as registry:
            account = registry.get_account().id
            registry.append_documents(account, 'intents', documents(10), part=0)
            registry.append_documents(account, 'intents', documents(5, 10), part=1)
            registry.append_documents(account, 'intents', documents(7, 20), part=1)
            with pytest.raises(DataError):
                registry.append_documents(account, 'intents', [*documents(1), *documents(1), None])
            run, _ = registry.create_run(account, 'default', 'run', {}, datasets=['intents'])
            assert len(keys()[0]) == 2
        # another machine of the same service
        with Registry.open(tmp_path / 'worker') as worker:
            assert worker.start_run(run.id, 'worker:1')
            shards = worker.get_run_datasets(run.id)['intents'].shards
            paths = worker.fetch_shards(shards, tmp_path / 'shards')
            assert [sha256(path) for path in paths] == [shard.sha256 for shard in shards]
            artifact_path = make_file(17 * MIB)
            worker.finish_run(run.id, artifact_path, {}, {})
        with Registry.open() as registry:
            promotion = registry.promote(account, 'intents@production', 'default/run')
            artifact = registry.find_artifact(account, 'intents@production')
            assert promotion.artifact_id == artifact.id == run.artifact_id
            size, content = artifact.size, artifact_path.read_bytes()
            assert registry.read_artifact(artifact, size - 100, 1000) == content[-100:]
            assert registry.read_artifact(artifact, size, 1000) == b''
            assert registry.artifact_file(artifact).read_bytes() == content
            usage = registry.usage(account)
            assert (usage.datasets.count, usage.artifacts.bytes) == (1, size)

            boto3.client('s3').delete_object(Bucket=url.split('/')[2], Key=f'a/prefix/{artifact.key}')
            with pytest.raises(ArtifactError, match='is missing in the object store') as raised:
                registry.read_artifact(artifact, 0, 10)
            assert 'bucket' not in str(raised.value)

            registry.delete_alias(account, 'intents@production')
            registry.delete_experiments(account)
            registry.delete_dataset(account, 'intents')
            assert keys() == ([], [])
            assert registry.usage(account).runs == 0
