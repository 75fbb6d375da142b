"""An executor that starts before its database does."""

import logging
import signal
import time

import psutil
import pytest

from executors.opening import open_registry
from finetuner.excepts import UnavailableError
from registry import Registry
from registry.database import Database
from tests.integration.conftest import Service, wait_until
from training import errors


def test_a_database_that_comes_later_is_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(errors, 'PAUSE', 0.01)
    answers = iter([False, False, True])
    migrate = Database.migrate

    def come_up(database: Database) -> None:
        if not next(answers):
            raise UnavailableError('The database postgresql://host cannot be reached: connection refused')
        migrate(database)

    monkeypatch.setattr(Database, 'migrate', come_up)
    with open_registry(logging.getLogger('opening-test')) as registry:
        assert isinstance(registry, Registry) and registry.get_account().name == 'local'
    said = [record.message for record in caplog.records if record.name == 'opening-test']
    assert said == ['The database postgresql://host cannot be reached: connection refused: trying again']


@pytest.mark.parametrize('flow, waiting', [('train.yml', ['dataset', 'trainer']), ('search.yml', ['search'])])
def test_who_waits_for_a_database_can_be_told_to_end(tmp_path, flow, waiting):
    away = 'postgresql://user:password@127.0.0.1:1/away'
    variable = 'FINETUNER_DATABASE_URL' if flow == 'train.yml' else 'FINETUNER_SEARCH_INDEX_URL'
    service = Service(flow, tmp_path, **{variable: away})
    service.launch()
    service.processes = []
    try:
        for executor in waiting:
            wait_until(lambda name=executor: _waits(service, name), 120, f'{executor} waiting')
        service.processes = psutil.Process(service.process.pid).children(recursive=True)
        began = time.monotonic()
        assert service.stop() == 128 + signal.SIGTERM
        assert time.monotonic() - began < 20
    finally:
        service.process.kill()
        for process in filter(psutil.Process.is_running, service.processes):
            process.kill()


def _waits(service: Service, executor: str) -> bool:
    lines = service.log.read_text().splitlines()
    return any(f'{executor}/rep-0@' in line and 'trying again' in line for line in lines)
