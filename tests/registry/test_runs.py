from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from finetuner.excepts import RegistryError, RunFailedError
from registry.records import CANCELLED, CREATED, FAILED, FINISHED, STARTED


def test_a_new_run_waits_and_knows_its_artifact(registry, account):
    run, is_new = registry.create_run(account, 'support', 'first', {'epochs': 3, 'loss': None}, 'A try')
    assert is_new
    assert (run.name, run.experiment_name, run.status, run.description) == ('first', 'support', CREATED, 'A try')
    assert run.details == 'Run submitted and awaits execution'
    assert len(run.artifact_id) == 24 and int(run.artifact_id, 16)
    assert run.config == {'epochs': 3, 'loss': None}
    assert run.created_at.tzinfo is UTC
    assert abs(run.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert (run.started_at, run.finished_at, run.metrics, run.examples, run.progress) == (None, None, None, None, {})
    assert registry.get_run(account, 'support', 'first') == run == registry.get_run_by_id(run.id)


def test_the_same_run_again_is_the_first_one(registry, account):
    first, _ = registry.create_run(account, 'default', 'run', {'epochs': 3, 'rate': 1e-5, 'layers': (1, 2)})
    again, is_new = registry.create_run(account, 'default', 'run', {'epochs': 3.0, 'rate': 1e-5, 'layers': [1, 2]})
    assert (again, is_new) == (first, False)
    with pytest.raises(
        RegistryError, match=r"'run' of the experiment 'default' is there already, .*other values of epochs, seed"
    ):
        registry.create_run(account, 'default', 'run', {'epochs': 4, 'seed': 1, 'rate': 1e-5, 'layers': [1, 2]})
    assert registry.create_run(account, 'other', 'run', {'epochs': 4})[1]


def test_a_run_of_before_is_the_same_where_new_arguments_have_their_defaults(registry, account):
    first, _ = registry.create_run(account, 'default', 'run', {'epochs': 3, 'gone': None})
    now, defaults = {'epochs': 3, 'lora': False}, {'epochs': 5, 'lora': False, 'gone': None}
    assert registry.create_run(account, 'default', 'run', now, defaults=defaults) == (first, False)
    with pytest.raises(RegistryError, match='other values of'):
        registry.create_run(account, 'default', 'run', now | {'lora': True}, defaults=defaults)
    with pytest.raises(RegistryError, match='other values of'):
        registry.create_run(account, 'default', 'run', {'lora': False}, defaults=defaults)


def test_many_threads_make_one_run(registry, account):
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: registry.create_run(account, 'new', 'run', {'epochs': 1}), range(20)))
    assert len({run.id for run, _ in answers}) == 1
    assert sum(is_new for _, is_new in answers) == 1
    assert registry.list_runs(account).total == 1


@pytest.mark.parametrize('value', [float('nan'), float('inf'), object(), b'bytes'])
def test_a_config_is_json(registry, account, value):
    with pytest.raises(RegistryError, match=r"config\['loss'\]\['margin'\] is .*, which JSON cannot hold"):
        registry.create_run(account, 'default', 'run', {'loss': {'margin': value}})


def test_one_worker_gets_the_run(registry, account):
    run, _ = registry.create_run(account, 'default', 'run', {})
    with ThreadPoolExecutor(20) as pool:
        won = list(pool.map(lambda index: registry.start_run(run.id, f'host:{index}'), range(20)))
    assert won.count(True) == 1
    run = registry.get_run_by_id(run.id)
    assert (run.status, run.worker) == (STARTED, f'host:{won.index(True)}')
    assert run.started_at == run.heartbeat_at >= run.created_at


def test_a_run_from_start_to_finish(registry, account, started_run, artifact_path):
    run = started_run()
    assert registry.heartbeat(run.id, {'epoch': 1, 'loss': np.float32(0.5)})
    assert registry.heartbeat(run.id)
    started = registry.get_run_by_id(run.id)
    assert started.progress == {'epoch': 1, 'loss': 0.5}
    assert started.heartbeat_at > started.started_at

    metrics = {'before': {'precision_at_k': 0.25}, 'after': {'precision_at_k': 0.5}}
    examples = {'before': {'Grüße': ['hello', 'bye']}, 'after': {'Grüße': ['hello']}}
    registry.finish_run(run.id, artifact_path, metrics, examples)

    run = registry.get_run(account, 'default', 'run')
    assert (run.status, run.details, run.metrics, run.examples) == (FINISHED, 'Run finished', metrics, examples)
    assert run.finished_at > run.started_at
    assert artifact_path.exists()
    assert not registry.heartbeat(run.id)


def test_a_diverged_run_can_tell(registry, started_run, artifact_path):
    run = started_run()
    registry.heartbeat(run.id, {'loss': float('nan'), 'losses': [np.float64('inf'), 1.0]})
    assert registry.get_run_by_id(run.id).progress == {'loss': None, 'losses': [None, 1.0]}
    registry.finish_run(run.id, artifact_path, {'after': {'recall_at_k': float('nan')}}, {})
    assert registry.get_run_by_id(run.id).metrics == {'after': {'recall_at_k': None}}


def test_a_failed_run_stays_failed_for_the_first_reason(registry, started_run, artifact_path, stored_files):
    run = started_run()
    assert registry.fail_run(run.id, 'Out of memory\0 \ud800')
    assert not registry.fail_run(run.id, 'The worker is gone')
    with pytest.raises(RegistryError, match="'run' cannot be finished, it is FAILED: Out of memory"):
        registry.finish_run(run.id, artifact_path, {}, {})
    assert not registry.start_run(run.id, 'host:2')
    assert not registry.heartbeat(run.id, {'epoch': 9})
    run = registry.get_run_by_id(run.id)
    assert (run.status, run.details, run.progress, run.metrics) == (FAILED, 'Out of memory\ufffd ?', {}, None)
    assert run.finished_at is not None
    assert stored_files() == []


def test_a_finished_run_stays_finished(registry, started_run, artifact_path, stored_files):
    run = started_run()
    registry.finish_run(run.id, artifact_path, {}, {})
    files = stored_files()
    assert not registry.fail_run(run.id, 'Too late')
    with pytest.raises(RegistryError, match='it is FINISHED'):
        registry.finish_run(run.id, artifact_path, {}, {})
    assert registry.get_run_by_id(run.id).status == FINISHED
    assert stored_files() == files


@pytest.mark.parametrize('started', [False, True])
def test_a_cancelled_run_stays_cancelled_until_it_is_resumed(registry, account, artifact_path, started):
    run, _ = registry.create_run(account, 'default', 'run', {})
    assert not started or registry.start_run(run.id, 'host:1')
    assert registry.cancel_run(run.id, 'Cancelled by somebody')
    assert not registry.cancel_run(run.id, 'again') and not registry.fail_run(run.id, 'too late')
    assert not registry.heartbeat(run.id) and not registry.start_run(run.id, 'host:2')
    with pytest.raises(RegistryError, match='it is CANCELLED: Cancelled by somebody'):
        registry.finish_run(run.id, artifact_path, {}, {})
    cancelled = registry.get_run_by_id(run.id)
    assert (cancelled.status, cancelled.details) == (CANCELLED, 'Cancelled by somebody')
    assert cancelled.finished_at is not None and registry.unfinished_runs() == []
    with pytest.raises(RunFailedError, match='left no artifact, it was cancelled: Cancelled by somebody'):
        registry.get_artifact(account, run.artifact_id)

    assert registry.resume_run(run.id)
    assert not registry.resume_run(run.id)
    again = registry.get_run_by_id(run.id)
    assert (again.status, again.finished_at, again.progress) == (CREATED, None, {})
    assert registry.create_run(account, 'default', 'run', {}) == (again, False)
    if started:  # its worker has yet to end
        assert not registry.start_run(run.id, 'host:2')
        registry.release_run(run.id, again.lease)
    assert registry.start_run(run.id, 'host:2')
    registry.finish_run(run.id, artifact_path, {}, {})
    assert not registry.resume_run(run.id) and not registry.cancel_run(run.id, 'too late')
    assert registry.get_run_by_id(run.id).status == FINISHED


def test_a_failed_run_can_be_resumed(registry, started_run):
    run = started_run()
    assert not registry.resume_run(run.id)
    registry.fail_run(run.id, 'The service was stopped')
    assert registry.resume_run(run.id) and registry.get_run_by_id(run.id).status == CREATED


def test_a_run_that_was_not_started_cannot_be_finished_but_can_fail(registry, account, artifact_path):
    run, _ = registry.create_run(account, 'default', 'run', {})
    with pytest.raises(RegistryError, match='it is CREATED'):
        registry.finish_run(run.id, artifact_path, {}, {})
    assert registry.fail_run(run.id, 'The data set is gone')


def test_finishing_and_failing_at_once_has_one_outcome(registry, started_run, artifact_path, stored_files):
    for index in range(5):
        run = started_run(f'run-{index}')
        with ThreadPoolExecutor(2) as pool:
            finishing = pool.submit(registry.finish_run, run.id, artifact_path, {}, {})
            failed = pool.submit(registry.fail_run, run.id, 'reason').result()
        assert registry.get_run_by_id(run.id).status == (FAILED if failed else FINISHED)
        assert (finishing.exception() is not None) == failed
    finished = [run for run in registry.list_runs(run.account_id).items if run.status == FINISHED]
    assert len(stored_files()) == len(finished)


def test_a_missing_artifact_file_does_not_finish_the_run(registry, started_run, tmp_path, stored_files):
    run = started_run()
    with pytest.raises(FileNotFoundError, match='nowhere.zip'):
        registry.finish_run(run.id, tmp_path / 'nowhere.zip', {}, {})
    assert registry.get_run_by_id(run.id).status == STARTED
    assert stored_files() == []


def test_a_run_sees_its_data_sets_as_they_were(registry, account, documents):
    registry.append_documents(account, 'train', documents(4), part=5)
    registry.append_documents(account, 'test', documents(2))
    before = registry.get_dataset(account, 'test')
    train = registry.get_dataset(account, 'train')
    run, _ = registry.create_run(account, 'default', 'run', {}, datasets=['train', 'test'])
    registry.append_documents(account, 'train', documents(4, start=4), part=0)
    registry.append_documents(account, 'test', documents(1, start=9))

    assert registry.get_run_datasets(run.id) == {'train': train, 'test': before}


def test_the_same_run_on_data_that_has_changed_is_refused(registry, account, documents):
    registry.append_documents(account, 'train', documents(4))
    registry.append_documents(account, 'test', documents(2))
    run, _ = registry.create_run(account, 'default', 'run', {'epochs': 1}, datasets=['train', 'test'])
    assert registry.create_run(account, 'default', 'run', {'epochs': 1}, datasets=['train', 'test']) == (run, False)
    registry.append_documents(account, 'train', documents(1, start=4))
    with pytest.raises(RegistryError, match=r'is there already, .* the data has changed \(train\): choose another'):
        registry.create_run(account, 'default', 'run', {'epochs': 1}, datasets=['train', 'test'])
    assert registry.create_run(account, 'default', 'second', {'epochs': 1}, datasets=['train', 'test'])[1]


def test_a_run_on_an_unknown_data_set_is_refused(registry, account):
    with pytest.raises(RegistryError, match="There is no data set 'train'"):
        registry.create_run(account, 'default', 'run', {}, datasets=['train'])
    assert registry.list_runs(account).items == []


def test_lists_have_pages_with_the_newest_first(registry, account, started_run, artifact_path):
    for index in range(5):
        registry.create_run(account, 'default', f'run-{index}', {})
    registry.create_run(account, 'other', 'run', {})

    assert [run.name for run in registry.list_runs(account, 'default', page=1, size=2).items] == ['run-4', 'run-3']
    assert [run.name for run in registry.list_runs(account, 'default', page=3, size=2).items] == ['run-0']
    assert registry.list_runs(account, 'default', page=4, size=2).items == []
    assert registry.list_runs(account).total == 6
    for page, size in [(0, 10), (1, 0), (1, 1001)]:
        with pytest.raises(RegistryError, match='pages count from 1'):
            registry.list_runs(account, page=page, size=size)


def test_examples_are_left_out_of_lists(registry, account, started_run, artifact_path):
    run = started_run()
    registry.finish_run(run.id, artifact_path, {'after': {}}, {'after': {'query': ['match']}})
    [run] = registry.list_runs(account).items
    assert (run.metrics, run.examples) == ({'after': {}}, None)


def test_unfinished_runs_come_oldest_first(registry, account, started_run, artifact_path):
    done = started_run('done')
    registry.finish_run(done.id, artifact_path, {}, {})
    started_run('started')
    registry.fail_run(started_run('failed').id, 'reason')
    registry.create_run(account, 'default', 'created', {})
    runs = registry.unfinished_runs()
    assert [(run.name, run.status) for run in runs] == [('started', STARTED), ('created', CREATED)]
    assert runs[0].worker == 'host:1' and runs[0].heartbeat_at is not None


def test_unknown_runs_and_experiments_name_near_ones(registry, account):
    registry.create_run(account, 'support', 'keen-hopper', {})
    with pytest.raises(RegistryError, match="no run 'ken-hopper' in the experiment 'support': similar names: keen-hop"):
        registry.get_run(account, 'support', 'ken-hopper')
    with pytest.raises(RegistryError, match="no experiment 'suport': similar names: support"):
        registry.get_run(account, 'suport', 'keen-hopper')
    with pytest.raises(RegistryError, match="no experiment 'x': there are: support"):
        registry.list_runs(account, 'x')
    for call in (registry.get_run_by_id, registry.heartbeat, lambda id: registry.start_run(id, 'host:1')):
        with pytest.raises(RegistryError, match='There is no run of the id'):
            call('f' * 24)


def test_runs_belong_to_their_account(registry, account):
    other = registry.create_account('other').id
    registry.create_run(account, 'default', 'run', {})
    with pytest.raises(RegistryError, match='There is no experiment'):
        registry.get_run(other, 'default', 'run')
    assert registry.list_runs(other).items == []
    assert registry.create_run(other, 'default', 'run', {'epochs': 1})[1]


def test_a_run_has_a_folder(registry, account):
    run, _ = registry.create_run(account, 'default', 'run', {})
    folder = registry.run_directory(run.id)
    assert folder.is_dir() and folder == registry.home / 'runs' / run.id
    with pytest.raises(RegistryError, match='is not the id of a run'):
        registry.run_directory('../../elsewhere')


def test_a_run_of_another_experiment_is_said_to_be_there(registry, account):
    registry.create_run(account, 'default', 'other', {})
    registry.create_run(account, 'support', 'run', {})
    with pytest.raises(RegistryError, match="no run 'run' in the experiment 'default': it is in support"):
        registry.get_run(account, 'default', 'run')
