"""Workers, executors and whole services that are killed: no run stays STARTED for ever."""

import psutil
import pytest

from finetuner.documents import Document
from finetuner.excepts import RunInProgressError
from registry import Registry

FOR_EVER = 1_000_000  # epochs


def test_all_processes_end_with_the_main_one(start_service, tiny_model):
    service = start_service('finetuner.yml', FINETUNER_ARTIFACT=tiny_model)
    service.ingest_fruits()
    service.fit(tiny_model, 'interrupted', epochs=FOR_EVER)
    worker = service.worker_of('interrupted')
    service.kill()
    assert not worker.is_running()
    service.start()
    run = service.tags('/status', run_name='interrupted')
    assert (run['status'], run['details']) == ('FAILED', 'The service was stopped while the run was at work')
    assert len(service.call('/encode', [Document(text='fig')]).embeddings[0]) == 32


def test_runs_end_whoever_is_killed(start_service, tiny_model):
    service = start_service('train.yml', FINETUNER_MAX_RUNS=1)
    service.ingest_fruits()

    service.fit(tiny_model, 'first', epochs=FOR_EVER)
    worker = service.worker_of('first')
    assert worker.ppid() == service.process_of('trainer').pid
    with pytest.raises(RunInProgressError, match='needs to be finished first, it is STARTED'):
        service.call('/metrics', run_name='first')

    # one at a time: the others wait
    service.fit(tiny_model, 'second', epochs=FOR_EVER)
    service.fit(tiny_model, 'third', epochs=FOR_EVER)
    names = {service.fit(tiny_model, None, epochs=FOR_EVER)['name'] for _ in range(2)}
    assert len(names) == 2, 'runs without a name are different runs'
    assert service.tags('/status', run_name='second')['status'] == 'CREATED'

    # kill -9 of a worker: its run fails, the next one starts
    worker.kill()
    run = service.wait_for('first', 'FAILED', seconds=15)
    assert 'killed by SIGKILL' in run['details']
    worker = service.worker_of('second')

    # kill -9 of the whole service: the worker goes on, and is looked after by the next service
    service.kill_all()
    service.start()
    assert worker.is_running()
    assert service.tags('/status', run_name='second')['status'] == 'STARTED'
    assert service.tags('/status', run_name='third')['status'] == 'CREATED', 'the worker of another still counts'
    worker.kill()
    run = service.wait_for('second', 'FAILED', seconds=15)
    assert f'{worker.pid} is gone' in run['details']

    # kill -9 of the service and the worker
    worker = service.worker_of('third')
    service.kill_all()
    worker.kill()
    service.start()
    run = service.wait_for('third', 'FAILED', seconds=15)
    assert f'{worker.pid} is gone' in run['details']

    # an orderly stop ends what is at work, and keeps what waits
    started, waiting = [service.tags('/status', run_name=name) for name in names]
    if started['created_at'] > waiting['created_at']:
        started, waiting = waiting, started
    worker = service.worker_of(started['name'])
    service.stop()
    assert not psutil.pid_exists(worker.pid)
    with Registry.open(service.folder / 'home') as registry:
        runs = {run.name: run for run in registry.list_runs(registry.get_account().id).items}
    assert runs[started['name']].status == 'FAILED'
    assert runs[started['name']].details == 'The service was stopped while the run was at work'
    assert runs[waiting['name']].status == 'CREATED'
