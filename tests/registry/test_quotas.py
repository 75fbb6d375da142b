from concurrent.futures import ThreadPoolExecutor

import pytest

from finetuner.documents import Document
from finetuner.excepts import QuotaError, RegistryError
from registry import Registry


@pytest.fixture
def shard_size(registry, documents):
    """The bytes of ten documents whose numbers have two digits."""
    other = registry.create_account('measure').id
    return registry.append_documents(other, 'intents', documents(10, 10)).size


def test_usage_is_the_sum_of_what_is_there(registry, account, documents, finished_run, started_run, shard_size):
    registry.append_documents(account, 'a', documents(10, 10))
    registry.append_documents(account, 'b', documents(10, 10))
    finished_run(name='done')
    started_run('working')
    registry.create_run(account, 'default', 'waiting', {})
    usage = registry.usage(account)
    assert (usage.datasets.count, usage.datasets.bytes) == (2, 2 * shard_size)
    assert (usage.artifacts.count, usage.artifacts.bytes, usage.checkpoints.count) == (1, 100_000, 0)
    assert (usage.waiting, usage.at_work, usage.runs) == (1, 1, 3)
    assert (usage.account.max_bytes, usage.account.max_runs) == (None, None)
    registry.delete_dataset(account, 'a')
    registry.delete_run(account, 'default', 'done')
    usage = registry.usage(account)
    assert (usage.datasets.count, usage.artifacts.bytes, usage.runs) == (1, 0, 2)


def test_what_goes_beyond_the_quota_is_refused_and_leaves_nothing(
    registry, account, documents, shard_size, dump, stored_files
):
    registry.set_quota(account, 2 * shard_size, None)
    registry.append_documents(account, 'intents', documents(10, 10), part=0)
    registry.append_documents(account, 'intents', documents(10, 20), part=1)
    before = dump(), stored_files()
    for part in (None, 2):
        with pytest.raises(RegistryError, match=f'quota of the account is {2 * shard_size} bytes, of which .* no room'):
            registry.append_documents(account, 'intents', documents(10, 30), part=part)
    assert (dump(), stored_files()) == before
    # the same again, and what takes the place of something, need no room
    registry.append_documents(account, 'intents', documents(10, 10), part=0)
    registry.append_documents(account, 'intents', documents(10, 40), part=1)
    registry.append_documents(account, 'intents', documents(10, 50), part=0)
    assert registry.usage(account).datasets.bytes == shard_size
    registry.set_quota(account, None, None)
    registry.append_documents(account, 'intents', documents(100))


def large_documents(taken):
    for index in range(3000):
        taken.append(index)
        yield Document(text=f'{index} {"x" * 20_000}')


def test_what_has_no_room_is_refused_before_all_of_it_is_written(registry, account, dump, stored_files):
    registry.set_quota(account, 1_000_000, None)
    before, taken = (dump(), stored_files()), []
    with pytest.raises(
        QuotaError, match='quota of the account is 1000000 bytes, of which 0 are used: there is no room'
    ):
        registry.append_documents(account, 'large', large_documents(taken))
    assert len(taken) < 1000
    assert (dump(), stored_files()) == before


def test_no_part_is_larger_than_the_service_takes(registry, account, monkeypatch, dump, stored_files):
    before, taken = (dump(), stored_files()), []
    monkeypatch.setenv('FINETUNER_PART_BYTES', '1000000')
    with pytest.raises(QuotaError, match='more than 1000000 bytes .*FINETUNER_PART_BYTES'):
        registry.append_documents(account, 'large', large_documents(taken))
    assert len(taken) < 1000
    assert (dump(), stored_files()) == before


@pytest.mark.parametrize('name', ['FINETUNER_PART_BYTES', 'FINETUNER_SEARCH_BYTES'])
def test_a_limit_that_is_no_number_is_told_when_the_registry_opens(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, '8GB')
    with pytest.raises(RegistryError, match=f"{name} is '8GB': it is a number of bytes"):
        Registry.open(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_account_that_has_too_much_may_send_again_what_is_there(registry, account, documents):
    registry.append_documents(account, 'intents', documents(10, 10), part=0)
    registry.append_documents(account, 'intents', documents(10, 20), part=1)
    registry.set_quota(account, 1, None)
    for part in (0, 1):
        sent = documents(10, 10 + 10 * part)
        for document in sent:
            document.id = f'{document.id} sent again'
        registry.append_documents(account, 'intents', sent, part=part)
    with pytest.raises(QuotaError):
        registry.append_documents(account, 'intents', documents(10, 30), part=1)


def test_appends_at_once_stay_within_the_quota(registry, account, documents, shard_size, stored_files):
    registry.set_quota(account, 3 * shard_size + 10, None)

    def append(index):
        try:
            registry.append_documents(account, f'set-{index % 4}', documents(10, 10))
            return True
        except RegistryError as error:
            assert 'quota' in str(error)
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(append, range(12))) == 3
    assert registry.usage(account).datasets.bytes == 3 * shard_size
    assert len(stored_files()) == 3 + 1


def test_no_run_begins_beyond_the_quota_and_none_loses_its_artifact(
    registry, account, started_run, artifact_path, documents
):
    run = started_run('working')
    registry.set_quota(account, 50_000, None)
    registry.finish_run(run.id, artifact_path, {}, {})
    assert registry.usage(account).artifacts.bytes == 100_000
    with pytest.raises(RegistryError, match='The quota of the account is 50000 bytes, of which 100000 are used'):
        registry.create_run(account, 'new', 'run', {})
    assert [found.name for found in registry.list_experiments(account).items] == ['default']
    # what is there is found again
    assert registry.create_run(account, 'default', 'working', {}) == (registry.get_run_by_id(run.id), False)
    registry.delete_run(account, 'default', 'working')
    assert registry.create_run(account, 'new', 'run', {})[1]


def test_quotas_are_of_one_account(registry, account, documents):
    registry.set_quota(account, 0, 0)
    other = registry.create_account('other').id
    registry.append_documents(other, 'intents', documents(10, 10))
    with pytest.raises(RegistryError, match='quota'):
        registry.append_documents(account, 'intents', documents(1))


@pytest.mark.parametrize('limit', [-1, 2**63])
def test_quotas_are_checked(registry, account, limit):
    for limits in ((limit, None), (None, limit)):
        with pytest.raises(RegistryError, match='cannot be the most'):
            registry.set_quota(account, *limits)
    with pytest.raises(RegistryError, match='There is no account of the id'):
        registry.set_quota('f' * 24, 1, 1)
