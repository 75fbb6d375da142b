import json
import signal
import time

import pytest
from sqlalchemy import text

from finetuner import settings
from finetuner.excepts import RegistryError
from registry import Registry
from registry.records import FINISHED, STARTED

TOGETHER = """
    import json, time
    from pathlib import Path
    from finetuner.documents import Document
    from registry import Registry

    gate, name = Path(arguments[0]), arguments[1]
    (gate / name).touch()
    while len(list(gate.iterdir())) < 4:
        time.sleep(0.001)
    with Registry.open() as registry:
        account = registry.get_account().id
        for index in range(5):
            registry.append_documents(account, 'intents', [Document(id=f'{name}-{index}', text='some text')])
            registry.append_documents(account, 'fixed', [Document(id='same', text='some text')], part=index)
        run, is_new = registry.create_run(account, 'default', 'run', {'epochs': 1}, datasets=['fixed'])
        answer = [is_new, registry.start_run(run.id, f'{name}:{os.getpid()}')]
        Path(arguments[2]).write_text(json.dumps(answer))
"""

pytestmark = pytest.mark.usefixtures('database')


def test_processes_that_start_together_agree(script, tmp_path):
    (tmp_path / 'gate').mkdir()
    processes = [script(TOGETHER, tmp_path / 'gate', index, tmp_path / f'{index}.json') for index in range(4)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    answers = [json.loads((tmp_path / f'{index}.json').read_text()) for index in range(4)]

    assert sorted(is_new for is_new, _ in answers) == [False, False, False, True]
    assert sorted(started for _, started in answers) == [False, False, False, True]
    with Registry.open() as registry:
        account = registry.authenticate(settings.load_token())
        with registry.database.read() as session:
            assert session.scalar(text('SELECT count(*) FROM accounts')) == 1
            assert session.scalar(text('SELECT count(*) FROM tokens')) == 1
        dataset = registry.get_dataset(account.id, 'intents')
        assert [shard.part for shard in dataset.shards] == list(range(20))
        assert registry.get_dataset(account.id, 'fixed').rows == 5
        assert registry.list_runs(account.id).total == 1


FIRST_START = """
    import time
    from pathlib import Path
    from registry import Registry

    gate, name = Path(arguments[0]), arguments[1]
    os.environ['FINETUNER_HOME'] = str(gate.parent / f'home{name}')
    (gate / name).touch()
    while len(list(gate.iterdir())) < 4:
        time.sleep(0.001)
    Registry.open().close()
"""


def test_first_starts_in_several_homes_share_one_token(script, tmp_path, monkeypatch):
    (tmp_path / 'gate').mkdir()
    processes = [script(FIRST_START, tmp_path / 'gate', index) for index in range(4)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    for index in range(4):
        with Registry.open(tmp_path / f'home{index}') as registry:
            assert registry.authenticate(settings.load_token()).name == 'local'


SAVE = """
    import time
    from pathlib import Path
    from finetuner import settings

    gate, name = Path(arguments[0]), arguments[1]
    (gate / name).touch()
    while len(list(gate.iterdir())) < 4:
        time.sleep(0.001)
    for number in range(20):
        settings.save_token('a token', f'grpc://host-{name}-{number}')
"""


def test_processes_that_save_tokens_lose_none(script, tmp_path):
    (tmp_path / 'gate').mkdir()
    processes = [script(SAVE, tmp_path / 'gate', index) for index in range(4)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    hosts = [f'host-{index}-{number}' for index in range(4) for number in range(20)]
    assert {settings.load_token(host) for host in hosts} == {'a token'}
    assert {path.name for path in settings.config_dir().iterdir()} == {'.lock', 'credentials.json'}


KILLED_IN_APPEND = """
    import signal
    from sqlalchemy import event
    from finetuner.documents import Document
    from registry import Registry
    from registry.staging import Staging

    moment = arguments[0]
    registry = Registry.open()

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def documents():
        for index in range(10_000):
            yield Document(id=str(index), text='some text')
        if moment == 'writing':
            die()

    if moment == 'insert':
        event.listen(registry.database.engine, 'before_cursor_execute',
                     lambda _, __, sql, *___: die() if sql.startswith('INSERT INTO shards') else None)
    if moment == 'commit':
        event.listen(registry.database.engine, 'commit',
                     lambda connection: die() if connection.get_execution_options().get('write') else None)
    if moment == 'committed':
        Staging._settle = die
    registry.append_documents(registry.get_account().id, 'intents', documents(), part=0)
"""


@pytest.mark.parametrize('moment', ['writing', 'insert', 'commit'])
def test_a_kill_in_an_append_leaves_nothing(script, stored_files, moment, documents):
    with Registry.open() as registry:
        account = registry.get_account().id
        process = script(KILLED_IN_APPEND, moment)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        # what is left is on its way still: there is no data set
        assert stored_files() != []
        with pytest.raises(RegistryError, match='There is no data set'):
            registry.get_dataset(account, 'intents')

    with Registry.open() as registry:
        assert stored_files() == []
        assert registry.append_documents(account, 'intents', documents(3)).rows == 3


def test_a_kill_after_an_append_loses_nothing(script, stored_files):
    process = script(KILLED_IN_APPEND, 'committed')
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    with Registry.open() as registry:
        dataset = registry.get_dataset(registry.get_account().id, 'intents')
        assert dataset.rows == 10_000
        assert stored_files() == [f'objects/{dataset.shards[0].key}']
        registry.fetch_shards(dataset.shards, registry.home)


@pytest.mark.parametrize('moment', ['insert', 'commit', 'committed'])
def test_a_kill_in_a_replacement_leaves_the_one_or_the_other(script, stored_files, moment, documents):
    with Registry.open() as registry:
        account = registry.get_account().id
        registry.append_documents(account, 'intents', documents(3), part=0)
    process = script(KILLED_IN_APPEND, moment)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    with Registry.open() as registry:
        dataset = registry.get_dataset(account, 'intents')
        assert dataset.rows == (10_000 if moment == 'committed' else 3)
        assert stored_files() == [f'objects/{dataset.shards[0].key}']
        registry.fetch_shards(dataset.shards, registry.home)


KILLED_IN_FINISH = """
    import signal
    from pathlib import Path
    from sqlalchemy import event
    from registry import Registry

    moment, run_id, artifact = arguments
    registry = Registry.open()

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == 'update':
        event.listen(registry.database.engine, 'before_cursor_execute',
                     lambda _, __, sql, *___: die() if sql.startswith('INSERT INTO artifacts') else None)
    if moment == 'commit':
        event.listen(registry.database.engine, 'commit',
                     lambda connection: die() if connection.get_execution_options().get('write') else None)
    registry.finish_run(run_id, Path(artifact), {'after': {}}, {})
"""


@pytest.mark.parametrize('moment', ['update', 'commit'])
def test_a_kill_in_finishing_leaves_the_run_started(registry, started_run, artifact_path, script, stored_files, moment):
    run = started_run()
    process = script(KILLED_IN_FINISH, moment, run.id, artifact_path)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert stored_files() != []
    assert registry.get_run_by_id(run.id).status == STARTED

    with Registry.open() as again:
        assert stored_files() == []
        again.finish_run(run.id, artifact_path, {}, {})
        assert again.get_run_by_id(run.id).status == FINISHED
        assert again.get_artifact(run.account_id, run.artifact_id).size == 100_000


def test_opening_leaves_alone_what_others_are_writing(registry, account, documents):
    def watched():
        yield from documents(5000)
        with Registry.open() as other:
            assert other.get_account().id == account
        yield from documents(5000)

    assert registry.append_documents(account, 'intents', watched()).rows == 10_000


def test_a_reader_is_not_held_up_by_a_long_append(registry, account, documents):
    def slow():
        yield from documents(10)
        start = time.monotonic()
        registry.create_run(account, 'default', 'run', {})
        assert registry.append_documents(account, 'other', documents(1)).rows == 1
        assert time.monotonic() - start < 10
        yield from documents(10)

    assert registry.append_documents(account, 'intents', slow()).rows == 20
