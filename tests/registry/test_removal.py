"""Deleting an account: all that it has goes, and nothing of others does."""

import shutil

import pytest
from sqlalchemy import func, select

from finetuner import settings
from finetuner.excepts import AuthenticationError, NotFoundError, RegistryError, RunInProgressError
from registry.models import Base
from registry.names import new_id
from registry.search_items import NewItem


@pytest.fixture
def fill(registry, documents, artifact_path, tmp_path):
    """Gives an account one of everything that there is; the value is a function, which returns its token."""

    def make(account_id):
        registry.append_documents(account_id, 'intents', documents(3), part=0)
        registry.append_documents(account_id, 'intents', documents(3, start=3), part=1)
        for name in ('first', 'second'):
            run, _ = registry.create_run(account_id, 'support', name, {'public': True}, datasets=['intents'])
            registry.start_run(run.id, 'host:1')
            (registry.run_directory(run.id) / 'log.txt').write_text('a line')
            registry.finish_run(run.id, artifact_path, {}, {})
            registry.promote(account_id, 'support@production', run.artifact_id)
        registry.create_run(account_id, 'support', 'waiting', {}, datasets=['intents'])
        stopped, _ = registry.create_run(account_id, 'other', 'stopped', {})
        lease = new_id()
        registry.start_run(stopped.id, 'host:1', lease)
        registry.append_log(stopped.id, lease, 0, b'a line')
        registry.store_checkpoint(stopped.id, lease, 'step-1', shutil.copy(artifact_path, tmp_path / 'checkpoint'))
        registry.cancel_run(stopped.id, 'Enough.')
        registry.clicks.register_session(account_id, 'released', 'a query', [{'object_id': 'a'}])
        registry.clicks.release_batch(account_id, 'release')
        registry.clicks.register_session(account_id, 'collected', 'a query', [{'object_id': 'a'}])
        registry.clicks.register_events(account_id, 'collected', [{'event_id': 'e', 'object_id': 'a'}])
        registry.clicks.register_events(account_id, 'to come', [{'event_id': 'e', 'object_id': 'a'}])
        registry.tuning.create_task(account_id, 'text-to-text', {})
        registry.items.upsert(account_id, 'model', [NewItem('a', 'a shoe', {'size': 38}, bytes(4))])
        return registry.create_token(account_id, 'laptop')

    return make


def run_folders():
    return sorted(path.name for path in (settings.home() / 'runs').iterdir())


def test_all_goes_that_the_account_has_and_nothing_else(registry, account, fill, dump, stored_files):
    fill(account)
    before = dump(), stored_files(), run_folders()
    support = registry.create_account('support').id
    token = fill(support)
    assert len(stored_files()) == 2 * len(before[1]) and len(run_folders()) == 2 * len(before[2])
    registry.delete_account(support)
    assert (dump(), stored_files(), run_folders()) == before
    with pytest.raises(AuthenticationError, match='not known'):
        registry.authenticate(token)
    with pytest.raises(NotFoundError, match='There is no account'):
        registry.delete_account(support)
    assert registry.create_account('support').id != support


def test_what_is_deleted_here_is_of_every_table_that_accounts_have(registry, fill):
    support = registry.create_account('support').id
    fill(support)
    owned = [table for table in Base.metadata.sorted_tables if 'account_id' in table.columns]

    def count():
        with registry.database.read() as session:
            counts = {table.name: select(func.count()).where(table.c.account_id == support) for table in owned}
            return {name: session.scalar(query) for name, query in counts.items()}

    before = count()
    assert all(before.values()), f'`fill` adds nothing to one of them: {before}'
    registry.delete_account(support)
    assert not any(count().values())


def test_what_comes_for_an_account_that_was_deleted_meanwhile_is_refused(registry):
    account = registry.create_account('support').id
    registry.delete_account(account)
    session, events = [{'object_id': 'a'}], [{'event_id': 'e', 'object_id': 'a'}]
    for add in (
        lambda: registry.clicks.register_session(account, 's', 'a query', session),
        lambda: registry.clicks.register_events(account, 's', events),
        lambda: registry.items.upsert(account, 'model', [NewItem('a', 'a shoe', None, bytes(4))]),
        lambda: registry.create_experiment(account, 'support'),
    ):
        with pytest.raises(NotFoundError, match='account'):
            add()
    registry.create_account('another')  # nothing is locked any more


def test_an_account_whose_run_is_at_work_stays_until_that_is_cancelled(registry, fill, dump, stored_files):
    support = registry.create_account('support').id
    fill(support)
    run = registry.get_run(support, 'support', 'waiting')
    registry.start_run(run.id, 'host:1')
    before = dump(), stored_files()
    with pytest.raises(RunInProgressError, match="The run 'waiting' .* is at work: cancel it first"):
        registry.delete_account(support)
    assert (dump(), stored_files()) == before
    registry.cancel_run(run.id, 'The account goes.')
    registry.delete_account(support)
    assert [found.name for found in registry.list_accounts().items] == ['local']


def test_the_account_of_the_service_stays(registry, account, fill, dump):
    fill(account)
    before = dump()
    with pytest.raises(RegistryError, match="'local' is that of the service itself"):
        registry.delete_account(account)
    assert dump() == before
