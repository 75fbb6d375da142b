"""An executor that starts before its database does."""

import logging

from executors.opening import open_registry
from finetuner.excepts import UnavailableError
from registry import Registry
from registry.database import Database
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
