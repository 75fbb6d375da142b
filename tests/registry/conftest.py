import multiprocessing
import os
import textwrap

import pytest

from finetuner import settings
from finetuner.documents import LABEL, Document
from registry import Registry


@pytest.fixture
def registry():
    with Registry.open() as registry:
        yield registry


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
