import stat

import pytest
from sqlalchemy import text

from finetuner.excepts import RegistryError, UnavailableError
from registry import Registry
from registry.database import Database
from registry.models import Base, now


def test_a_database_of_a_newer_version_is_refused(registry):
    with registry.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(RegistryError, match='is at version 9999, .*made by a newer version; update the program'):
        Registry.open()


def test_places_come_from_the_environment(monkeypatch, tmp_path, documents):
    monkeypatch.setenv('FINETUNER_DATABASE_URL', f'sqlite:///{tmp_path / "elsewhere" / "state.db"}')
    monkeypatch.setenv('FINETUNER_OBJECTS_URL', str(tmp_path / 'objects elsewhere'))
    with Registry.open() as registry:
        registry.append_documents(registry.get_account().id, 'intents', documents(1))
    assert (tmp_path / 'elsewhere' / 'state.db').exists()
    assert len(list((tmp_path / 'objects elsewhere').rglob('*.arrow'))) == 1
    assert sorted(path.name for path in (tmp_path / 'home').iterdir()) == ['open.lock', 'staging']


def test_a_new_home_is_for_its_user_alone_and_one_that_is_there_keeps_its_rights(tmp_path):
    Registry.open().close()
    assert stat.S_IMODE((tmp_path / 'home').stat().st_mode) == 0o700
    shared = tmp_path / 'shared'
    shared.mkdir()
    shared.chmod(0o750)
    Registry.open(home=shared).close()
    assert stat.S_IMODE(shared.stat().st_mode) == 0o750


def test_a_database_that_others_hold_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr('registry.database.BUSY_TIMEOUT_MS', 50)
    monkeypatch.setattr('registry.database.SQLITE_OPTIONS', {'pool_size': 1, 'max_overflow': 0, 'pool_timeout': 0.05})
    first, second = (Database(f'sqlite:///{tmp_path / "held.db"}') for _ in range(2))
    with first.write() as holding:
        holding.execute(text('SELECT 1'))
        with pytest.raises(UnavailableError, match='The database is busy: try again'), second.write() as waiting:
            waiting.execute(text('SELECT 1'))
        with pytest.raises(UnavailableError, match='The database is busy: try again'), first.read() as session:
            session.execute(text('SELECT 1'))
    first.close()
    second.close()


def test_who_cannot_lock_out_writers_is_told(database, monkeypatch):
    monkeypatch.setattr('registry.database.BUSY_TIMEOUT_MS', 50)
    with Registry.open() as first, Registry.open() as second, first.database.write() as writing:
        writing.execute(text("UPDATE runs SET name = 'other'"))
        with (
            pytest.raises(UnavailableError, match='The database is busy: try again'),
            second.database.without_writers(),
        ):
            pass


def test_times_keep_their_zone(tmp_path):
    database = Database(f'sqlite:///{tmp_path / "times.db"}')
    kept = Base.metadata.tables['accounts'].c.created_at.type
    time = now()
    bound = kept.process_bind_param(time, database.engine.dialect)
    assert kept.process_result_value(bound.replace(tzinfo=None), database.engine.dialect) == time
    with pytest.raises(ValueError, match='has no time zone'):
        kept.process_bind_param(time.replace(tzinfo=None), database.engine.dialect)
    database.close()
