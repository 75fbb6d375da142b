"""A registry of its own for each test, on SQLite and on PostgreSQL."""

import multiprocessing
import os
import textwrap

import pytest
from sqlalchemy import select

from finetuner import settings
from finetuner.documents import LABEL, Document
from registry import Registry
from registry.models import Base


@pytest.fixture(params=['sqlite', 'postgresql'])
def database_kind(request):
    return request.param


@pytest.fixture
def database(database_kind, request, monkeypatch):
    """Has every registry that this test opens, in any process, use one database: on SQLite the one of the home."""
    if database_kind == 'postgresql':
        monkeypatch.setenv('FINETUNER_DATABASE_URL', request.getfixturevalue('new_postgresql')())
    return database_kind


@pytest.fixture
def empty_database(database_kind, request, tmp_path):
    """The URL of a database without tables."""
    if database_kind == 'sqlite':
        return f'sqlite:///{tmp_path / "empty.db"}'
    return request.getfixturevalue('new_postgresql')('template0')


@pytest.fixture
def registry(database):
    with Registry.open() as registry:
        yield registry


@pytest.fixture
def dump(registry):
    """Reads all rows of all tables."""

    def read():
        with registry.database.read() as session:
            tables = Base.metadata.sorted_tables
            return {table.name: sorted(map(repr, session.execute(select(table)).all())) for table in tables}

    return read


@pytest.fixture
def account(registry):
    return registry.get_account().id


@pytest.fixture
def documents():
    """Makes n labelled texts, the same ones at every call."""

    def make(count, start=0):
        return [
            Document(id=f'd{index}', text=f'text number {index}', tags={LABEL: f'label-{index % 3}'})
            for index in range(start, start + count)
        ]

    return make


@pytest.fixture
def artifact_path(tmp_path):
    path = tmp_path / 'made.zip'
    path.write_bytes(os.urandom(100_000))
    return path


@pytest.fixture
def started_run(registry, account):
    def make(name='run', **config):
        run, _ = registry.create_run(account, 'default', name, config)
        assert registry.start_run(run.id, 'host:1')
        return run

    return make


@pytest.fixture
def finished_run(registry, account, artifact_path):
    """Makes a run that has finished, with an artifact, a log and a directory."""

    def make(experiment='default', name='run', **config):
        run, _ = registry.create_run(account, experiment, name, config)
        registry.start_run(run.id, 'host:1')
        (registry.run_directory(run.id) / 'log.txt').write_text('a line')
        registry.finish_run(run.id, artifact_path, {}, {})
        return registry.get_run_by_id(run.id)

    return make


@pytest.fixture
def stored_files():
    """Every file of the home that is data of users, in the object store or on its way there."""

    def find():
        home = settings.home()
        files = [*(home / 'objects').rglob('*'), *(home / 'staging').rglob('*')]
        return sorted(str(file.relative_to(home)) for file in files if file.is_file() and file.name != 'lock')

    return find


@pytest.fixture
def script():
    """Starts Python code in a process of its own, in the same home. `arguments` holds the further arguments there."""
    processes = []

    def start(source, *arguments):
        environment = {name: value for name, value in os.environ.items() if name.startswith('FINETUNER_')}
        source = 'import os\nos.environ.update(environment)\n' + textwrap.dedent(source)
        names = {'environment': environment, 'arguments': [str(argument) for argument in arguments]}
        # the server has imported what takes long, once for all processes
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(['registry', 'finetuner.documents'])
        process = context.Process(target=exec, args=(source, names))
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()
