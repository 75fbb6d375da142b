"""What is awaited, and that nothing holds up the event loop meanwhile."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time

import pytest

import finetuner
from finetuner import aio
from finetuner.documents import Document
from finetuner.excepts import RunFailedError, RunInProgressError


@pytest.fixture
def slow(service):
    """Make the answers of endpoints take a while."""

    def make(endpoint, seconds):
        answer = service.endpoints[endpoint]
        service.endpoints[endpoint] = lambda *arguments: time.sleep(seconds) or answer(*arguments)

    return make


async def beats(awaitable):
    """(result, the longest time in seconds that the event loop did not come round meanwhile)"""
    gaps = []

    async def beat():
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    heart = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        return await awaitable, max(gaps)
    finally:
        heart.cancel()


def test_the_names_are_those_of_the_package():
    missing = {
        name for name in finetuner.__all__ if inspect.isfunction(getattr(finetuner, name)) and not hasattr(aio, name)
    }
    assert missing == {
        'cos_sim', 'describe_models', 'get_token', 'list_callbacks', 'list_model_options', 'list_models',
        'login_required', 'logout',
    }, 'which ask no service'  # fmt: skip
    for one, other in ((finetuner.Run, aio.Run), (finetuner.Experiment, aio.Experiment)):
        members = {name for name in vars(one) if not name.startswith('_')}
        assert members - vars(other).keys() <= {'logs_from', 'refresh', 'require_finished', 'train_data'}


def test_a_run_from_fit_to_its_artifact(service, run_record):
    service.endpoints['/fit'] = run_record('CREATED')
    service.endpoints['/status'] = run_record('CREATED', 'STARTED', 'STARTED', 'FINISHED')
    service.endpoints['/metrics'] = lambda *_: {'after': {'hit_at_k': 0.5}}

    async def work():
        run = await aio.fit('m', 'my-data', run_name='r')
        assert (await run.status())['status'] == 'CREATED' and run.name == 'brisk-heron'
        with pytest.raises(RunInProgressError):
            await run.metrics()
        assert await run.wait(interval=0.01) is run
        return await run.metrics(), await run.artifact_id

    assert asyncio.run(work()) == ({'after': {'hit_at_k': 0.5}}, '0123456789abcdef01234567')


def test_the_event_loop_is_not_held_up(service, run_record, slow):
    service.endpoints['/status'] = run_record('STARTED', 'STARTED', 'FINISHED')
    slow('/status', 0.3)

    async def work():
        run = await aio.get_run('brisk-heron')
        return await beats(run.wait(interval=0.2))

    run, longest = asyncio.run(work())
    assert run.record['status'] == 'FINISHED'
    assert longest < 0.15


def test_those_who_wait_hold_no_threads(service, run_record):
    service.endpoints['/status'] = run_record('STARTED')

    async def work():
        run = await aio.get_run('brisk-heron')
        waits = [asyncio.create_task(run.wait(interval=60)) for _ in range(50)]
        while len(service.parameters('/status')) < 51:
            await asyncio.sleep(0.01)
        started = time.perf_counter()
        assert await aio.whoami() == 'local'
        for wait in waits:
            wait.cancel()
        return time.perf_counter() - started

    assert asyncio.run(work()) < 1


def test_logs_are_streamed(service, run_record):
    log = ['first\n', 'second\n', '']

    def logs(parameters, documents):
        offset = int(parameters['offset'])
        status = 'FINISHED' if offset == 2 else 'STARTED'
        return [Document(text=log[offset], tags={'offset': min(offset + 1, 2), 'status': status})]

    service.endpoints.update({'/logs': logs, '/status': run_record('CREATED', 'CREATED', 'STARTED')})

    async def work():
        run = await aio.get_run('brisk-heron')
        return [piece async for piece in run.stream_logs(interval=0.01)]

    assert asyncio.run(work()) == ['first\n', 'second\n']


def test_errors_arrive(service, run_record):
    service.endpoints['/status'] = run_record('FAILED', details='no labels')

    async def work():
        await (await aio.get_run('brisk-heron')).wait()

    with pytest.raises(RunFailedError, match='no labels'):
        asyncio.run(work())


def test_wait_gives_up_in_time(service, run_record):
    service.endpoints['/status'] = run_record('STARTED')

    async def work():
        await (await aio.get_run('brisk-heron')).wait(interval=60, timeout=0.1)

    start = time.perf_counter()
    with pytest.raises(TimeoutError, match=r'has not ended within 0.1 seconds. It goes on: wait\(\) again'):
        asyncio.run(work())
    assert time.perf_counter() - start < 5


def test_a_cancelled_fit_sends_no_further_part_and_starts_no_run(service, run_record, monkeypatch):
    from finetuner.client import upload

    monkeypatch.setattr(upload, 'PART_ROWS', 1)
    arrived, left = threading.Event(), threading.Event()
    parts = []

    def ingest(parameters, documents):
        parts.append(int(parameters['part']))
        arrived.set()
        assert left.wait(10)
        return {'rows': 1}

    service.endpoints.update({'/ingest': ingest, '/fit': run_record('CREATED')})

    async def work():
        documents = [Document(text=f'{n}', tags={'finetuner_label': 'x'}) for n in range(5)]
        task = asyncio.create_task(aio.fit('m', documents, run_name='r'))
        await asyncio.to_thread(arrived.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left.set()

    asyncio.run(work())  # waits for the thread
    assert parts == [0] and not service.parameters('/fit')


def test_experiments(service, run_record):
    record = {'name': 'support', 'status': 'ACTIVE', 'description': 'Mail', 'created_at': '2026-01-01', 'runs': 1}
    service.endpoints.update(
        {
            '/create_experiment': lambda *_: record,
            '/experiments': lambda *_: {'items': [record]},
            '/runs': lambda *arguments: {'items': [run_record('FINISHED')(*arguments)]},
            '/fit': run_record('CREATED'),
        }
    )

    async def work():
        made = await aio.create_experiment('support')
        (listed,) = await aio.list_experiments()
        (run,) = await made.list_runs()
        begun = await made.create_training_run('m', 'my-data', 'r', epochs=2)
        return made.name, listed.description, run.name, begun.record['status']

    assert asyncio.run(work()) == ('support', 'Mail', 'brisk-heron', 'CREATED')
    assert service.parameters('/fit')[0]['experiment_name'] == 'support'
