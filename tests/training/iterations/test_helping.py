"""Trainings of one iteration at the same time, each of them a run of the queue."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import psutil
import pytest
import torch

from executors.supervisor import Supervisor
from finetuner.excepts import DataError
from registry.names import new_id
from registry.records import CANCELLED, CREATED, STARTED
from registry.tuning_tasks import EXPERIMENT
from tests.integration.conftest import wait_until
from tests.training.iterations.shopkeeper import Shopkeeper
from training.heartbeat import Heartbeat
from training.interruption import Interruption
from training.iterations import helping
from training.iterations.carrying import carry
from training.iterations.helping import HELPS
from training.iterations.iteration import BEST
from training.iterations.training import Result
from training.launchers.attempt import Policy
from training.launchers.local import LocalLauncher


class Workers:
    """Take what the queue has for helpers, each in a process of its own."""

    def __init__(self, keeper, *, kill=False):
        self.keeper, self.kill, self.codes = keeper, kill, []
        self._end, self._thread = threading.Event(), threading.Thread(target=self._work)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._end.set()
        self._thread.join()

    def _work(self):
        while not self._end.wait(0.1):
            for run in self.keeper.helpers(CREATED):
                command = [sys.executable, '-W', 'ignore', '-m', 'training.worker', run.id]
                environment = {**os.environ, **self.keeper.variables, 'OMP_NUM_THREADS': '1'}
                if self.kill:
                    self.keeper.registry.start_run(run.id, 'host:2', new_id())
                    self.keeper.registry.fail_run(run.id, 'out of memory')
                else:
                    self.codes.append(subprocess.run(command, env=environment, check=False).returncode)


class Helped(Shopkeeper):
    def helpers(self, *statuses):
        if not any(found.name == EXPERIMENT for found in self.registry.list_experiments(self.account).items):
            return []
        found = self.registry.list_runs(self.account, EXPERIMENT).items
        return [run for run in found if HELPS in run.config and (not statuses or run.status in statuses)]


@pytest.fixture
def make(tmp_path, shop_model, empty_mlflow, click, monkeypatch):
    """Make someone who has sold for a while."""
    torch.set_num_threads(1)
    made = []

    def make(name, visits=600, evaluations=3):
        folder = tmp_path / name
        folder.mkdir()
        keeper = Helped.with_method(folder, shop_model, evaluations=evaluations, parallel=2)
        shutil.copyfile(empty_mlflow, keeper.home / 'mlflow.db')
        keeper.set_variables(monkeypatch)
        click(keeper.registry, keeper.account, visits)
        made.append(keeper)
        return keeper

    yield make
    for keeper in made:
        keeper.registry.close()


def qualities(keeper, task):
    return {run.info.run_name: run.data.metrics['quality'] for run in keeper.trainings(task)}


@pytest.mark.slow
def test_helpers_change_when_trainings_are_done_and_nothing_else(make):
    alone, helped = make('alone'), None
    without = alone.work(alone.ask())
    assert not alone.helpers(), 'nobody came: they were withdrawn'
    helped = make('helped')
    with Workers(helped) as workers:
        task = helped.work(helped.ask())
    assert workers.codes == [0], 'two trainings, then one'
    assert not helped.helpers(), 'what has done its work is removed'
    assert qualities(helped, task) == qualities(alone, without) and len(qualities(helped, task)) == 3
    assert task.metrics['parameters'] == without.metrics['parameters'] and len(helped.models()) == 1
    first, second, third = (run.info for run in helped.trainings(task))
    assert second.start_time < first.end_time, 'at the same time'
    assert third.start_time > max(first.end_time, second.end_time), 'the next proposal knows both'


def test_what_a_helper_fails_at_is_done_by_the_worker_of_the_task(make):
    keeper = make('unlucky')
    with Workers(keeper, kill=True):
        task = keeper.work(keeper.ask())
    assert task.status == 'done' and task.metrics['trainings'] == 3
    (failed,) = keeper.helpers()
    assert failed.details == 'out of memory', 'it stays, for whoever wants to know why'


@pytest.mark.slow
def test_a_helper_of_a_task_that_has_ended_does_nothing(make, capfd):
    keeper = make('ended')
    task = keeper.ask()
    order = helping.Order(task.run_id, '0', None, {'learning_rate': 2e-3}, 2, [], 'none')
    config = {'tuning_task': task.id, HELPS: dataclasses.asdict(order)}
    run, _ = keeper.registry.create_run(keeper.account, EXPERIMENT, 'helper', config)
    keeper.registry.tuning.cancel_task(keeper.account, task.id)
    with Workers(keeper):
        deadline = threading.Event()
        while keeper.registry.get_run_by_id(run.id).status != CANCELLED:
            assert not deadline.wait(0.5)
    assert keeper.registry.get_run_by_id(run.id).details == 'The task has ended'


def test_a_helper_that_finds_other_sessions_than_the_task_refuses(make):
    keeper = make('changed', visits=100)
    task, lease = keeper.ask(), new_id()
    batch = keeper.registry.clicks.release_batch(keeper.account, task.id)
    keeper.registry.tuning.set_batch(task.id, batch.id)
    order = helping.Order(task.run_id, '0', None, {'learning_rate': 2e-3}, 2, [], 'of other sessions')
    config = {'tuning_task': task.id, HELPS: dataclasses.asdict(order)}
    run, _ = keeper.registry.create_run(keeper.account, EXPERIMENT, 'helper', config)
    keeper.registry.start_run(run.id, 'host:2', lease)
    heartbeat = Heartbeat(keeper.registry, run.id, lease, 'host:2')
    with pytest.raises(DataError, match='are not those that the task began with'):
        carry(keeper.registry, keeper.registry.get_run_by_id(run.id), task.id, heartbeat, Interruption(), 60.0)


@pytest.fixture
def trained(monkeypatch):
    """Trainings end at once with the model that they start from; the value is the parameters of each."""
    begun = []

    def train(setting, candidate):
        setting.iteration.start(candidate.parameters)
        begun.append(candidate.parameters)
        return Result(0.5, setting.work.folder / BEST / 'initial_model.zip')

    monkeypatch.setattr('training.iterations.iteration.train', train)
    monkeypatch.setattr(helping, 'POLL', 0.01)
    return begun


@pytest.mark.slow
def test_a_task_whose_account_may_have_no_more_runs_does_all_alone(make, trained):
    keeper = make('full', visits=100)
    task = keeper.ask()
    keeper.registry.set_quota(keeper.account, 0, None)
    task = keeper.work(task)
    assert (task.status, task.metrics['trainings'], len(trained)) == ('done', 3, 3) and not keeper.helpers()


@pytest.mark.parametrize('is_deleted', [True, False])
def test_a_helper_that_its_user_ends_counts_as_a_training_that_failed(make, trained, is_deleted, monkeypatch):
    keeper = make('ended', visits=100, evaluations=2)
    delegate = helping.delegate

    def delegate_to_one_who_is_ended(*arguments):
        run_id = delegate(*arguments)
        run = keeper.registry.get_run_by_id(run_id)
        keeper.registry.start_run(run_id, 'host:2', new_id())
        keeper.registry.cancel_run(run_id, 'Canceled')
        if is_deleted:
            keeper.registry.delete_run(keeper.account, EXPERIMENT, run.name)
        return run_id

    monkeypatch.setattr('training.iterations.iteration.delegate', delegate_to_one_who_is_ended)
    task = keeper.work(keeper.ask())
    assert (task.status, task.metrics['trainings'], len(trained)) == ('done', 1, 1)


def test_a_helper_that_learned_from_something_else_is_not_taken_for_this_one():
    candidate = SimpleNamespace(name='a' * 64)

    def name(digest, start):
        method = SimpleNamespace(digest='method')
        setting = SimpleNamespace(
            method=method,
            material=SimpleNamespace(digest=digest),
            start=SimpleNamespace(artifact_id=start),
            work=SimpleNamespace(run=SimpleNamespace(name='task')),
        )
        return helping._name(setting, candidate)

    assert name('x', None) == name('x', None)
    assert len({name('x', None), name('y', None), name('x', 'b' * 24)}) == 3


def test_a_helper_hears_that_its_task_has_ended(make, monkeypatch):
    keeper = make('canceled')
    task = keeper.ask()
    signals = []
    monkeypatch.setattr('training.heartbeat.SECONDS', 0.01)
    monkeypatch.setattr('training.heartbeat.os.kill', lambda *sent: signals.append(sent))
    run, _ = keeper.registry.create_run(keeper.account, EXPERIMENT, 'helper', {})
    lease = new_id()
    keeper.registry.start_run(run.id, 'host:1', lease)
    heartbeat = Heartbeat(keeper.registry, run.id, lease, 'host:1')
    assert heartbeat.serve(task.run_id)
    with heartbeat.beating():
        assert not threading.Event().wait(0.3) and not signals
        keeper.registry.tuning.cancel_task(keeper.account, task.id)
        assert not threading.Event().wait(0.5)
    assert signals


@pytest.mark.slow
@pytest.mark.parametrize('who', ['nobody', 'helper', 'task'])
def test_the_queue_carries_task_and_helpers_also_if_a_worker_is_killed(make, who):
    keeper, policy = make(who), Policy(max_retries=2, retry_delay=0.1)
    logger = logging.getLogger('helping-test')
    supervisor = Supervisor(keeper.registry, logger, LocalLauncher(keeper.registry, logger, 2, (), policy), policy)
    supervisor.start()
    try:
        task = keeper.ask()
        wait_until(lambda: keeper.helpers(STARTED), 120, 'a helper at work')
        if who != 'nobody':
            run_id = keeper.helpers(STARTED)[0].id if who == 'helper' else task.run_id
            wait_until(lambda: 'Training' in str(keeper.registry.get_run_by_id(run_id).progress), 120, 'training')
            psutil.Process(int(keeper.registry.get_run_by_id(run_id).worker.rpartition(':')[2])).kill()
        task = wait_until(lambda: _ended(keeper, task), 240, 'the end of the task')
    finally:
        supervisor.close()
    assert (task.status, task.metrics['trainings']) == ('done', 3), task.details
    assert not keeper.helpers() and len(keeper.models()) == 1
    runs = keeper.trainings(task)
    assert {run.data.tags['outcome'] for run in runs} <= {'finished', 'pruned'}
    assert runs[1].info.start_time < runs[0].info.end_time


def _ended(keeper, task):
    found = keeper.registry.tuning.get_task_by_id(task.id)
    return found if found.status in ('done', 'error', 'canceled') else None
