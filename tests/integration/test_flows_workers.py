"""Workers, executors and whole services that are killed or stopped: no run is lost, and none stays STARTED for ever."""

import psutil
import pytest

from finetuner.documents import Document
from finetuner.excepts import RunInProgressError
from registry import Registry
from training.launchers.guard import STOPPED

FOR_EVER = 1_000_000  # epochs


@pytest.mark.slow
def test_all_processes_end_with_the_main_one(start_service, tiny_model):
    service = start_service('finetuner.yml', FINETUNER_ARTIFACT=tiny_model)
    service.ingest_fruits()
    service.fit(tiny_model, 'interrupted', epochs=FOR_EVER)
    worker = service.worker_of('interrupted')
    service.kill()
    assert not worker.is_running()
    service.start()
    run = service.tags('/status', run_name='interrupted')
    assert (run['status'], run['details']) in (('CREATED', STOPPED), ('STARTED', 'Run is being executed'))
    assert service.worker_of('interrupted').pid != worker.pid
    assert service.tags('/status', run_name='interrupted')['attempts'] == 1, 'a service that stops does not count'
    assert len(service.call('/encode', [Document(text='fig')]).embeddings[0]) == 32


@pytest.mark.slow
def test_runs_end_whoever_is_killed(start_service, tiny_model):
    service = start_service('train.yml', FINETUNER_MAX_RUNS=1, FINETUNER_MAX_RETRIES=0)
    service.ingest_fruits()

    service.fit(tiny_model, 'first', epochs=FOR_EVER)
    worker = service.worker_of('first')
    assert worker.ppid() == service.process_of('trainer').pid
    with pytest.raises(RunInProgressError, match="the run 'first' has to be FINISHED first, it is STARTED"):
        service.call('/metrics', run_name='first')

    # one at a time: the others wait
    positions = [
        service.fit(tiny_model, name, epochs=FOR_EVER, priority=priority)['queue_position']
        for name, priority in (('third', 2), ('fourth', 1), ('second', 3))
    ]
    assert positions == [1, 2, 1]
    assert [service.tags('/status', run_name=name)['queue_position'] for name in ('second', 'third', 'fourth')] == [
        1, 2, 3,
    ]  # fmt: skip
    names = {service.fit(tiny_model, None, epochs=FOR_EVER)['name'] for _ in range(2)}
    assert len(names) == 2, 'runs without a name are different runs'
    assert service.tags('/status', run_name='second')['status'] == 'CREATED'

    # kill -9 of a worker: its run fails, the next one starts
    worker.kill()
    run = service.wait_for('first', 'FAILED', seconds=30)
    assert 'killed by SIGKILL' in run['details']
    worker = service.worker_of('second')

    # kill -9 of the whole service: the worker goes on, and is looked after by the next service
    service.kill_all()
    service.start()
    assert worker.is_running()
    assert service.tags('/status', run_name='second')['status'] == 'STARTED'
    assert service.tags('/status', run_name='third')['status'] == 'CREATED', 'the worker of another still counts'
    worker.kill()
    run = service.wait_for('second', 'FAILED', seconds=30)
    assert f'{worker.pid} is gone' in run['details']

    # kill -9 of the service and the worker
    worker = service.worker_of('third')
    service.kill_all()
    worker.kill()
    service.start()
    run = service.wait_for('third', 'FAILED', seconds=30)
    assert f'{worker.pid} is gone' in run['details']

    # an orderly stop ends what is at work, and loses nothing
    worker = service.worker_of('fourth')
    service.stop()
    assert not psutil.pid_exists(worker.pid)
    with Registry.open(service.folder / 'home') as registry:
        runs = {run.name: run for run in registry.list_runs(registry.get_account().id).items}
        assert registry.leases() == []
    assert (runs['fourth'].status, runs['fourth'].details, runs['fourth'].attempts) == ('CREATED', STOPPED, 0)
    assert {runs[name].status for name in names} == {'CREATED'}
