import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest

from finetuner.documents import LABEL, SCORE, Content, Document
from finetuner.excepts import DataError, RegistryError, RunInProgressError
from registry import DatasetSummary, Registry
from registry.shards import open_shards


def summary(dataset):
    return DatasetSummary(*(getattr(dataset, field.name) for field in fields(DatasetSummary)))


def test_a_data_set_grows_by_parts(registry, account, documents):
    registry.append_documents(account, 'intents', documents(10))
    answer = registry.append_documents(account, 'intents', iter(documents(5, start=10)))

    dataset = registry.get_dataset(account, 'intents')
    assert answer == summary(dataset)
    assert (dataset.name, dataset.rows, dataset.labelled, dataset.scored) == ('intents', 15, True, False)
    assert (dataset.shape, dataset.modalities, dataset.linked) == ('items', ('text',), False)
    assert [shard.part for shard in dataset.shards] == [0, 1]
    assert dataset.size == sum(shard.size for shard in dataset.shards)


def test_shards_are_mapped_where_they_lie(registry, account, documents, tmp_path):
    registry.append_documents(account, 'intents', documents(10))
    dataset = registry.get_dataset(account, 'intents')
    paths = registry.fetch_shards(dataset.shards, tmp_path / 'copies')
    assert open_shards(paths)['text'].to_pylist() == [document.text for document in documents(10)]
    assert not (tmp_path / 'copies').exists()


def test_one_row_without_a_label_makes_the_data_set_unlabelled(registry, account, documents):
    registry.append_documents(account, 'intents', documents(3))
    dataset = registry.append_documents(account, 'intents', [Document(text='no label')])
    assert (dataset.labelled, dataset.modalities) == (False, ('text',))


def test_parts_of_other_shapes_are_refused(registry, account, documents):
    pair = Document(chunks=[Content(text='a'), Content(text='b')], tags={SCORE: 0.5})
    registry.append_documents(account, 'intents', documents(2), part=0)
    with pytest.raises(DataError, match=r'are pairs \(text,text\), and the data set .intents. holds items \(text\)'):
        registry.append_documents(account, 'intents', [pair], part=1)
    with pytest.raises(DataError, match=r'are items \(tensor\), and the data set'):
        registry.append_documents(account, 'intents', [Document(tensor=[1.0, 2.0])])
    assert registry.get_dataset(account, 'intents').rows == 2
    # part 0 begins a new upload
    answer = registry.append_documents(account, 'intents', [pair], part=0)
    assert (answer.shape, answer.modalities, answer.scored, answer.labelled) == ('pairs', ('text', 'text'), True, False)
    assert summary(registry.get_dataset(account, 'intents')) == answer


def test_the_same_part_again_changes_nothing(registry, account, documents, stored_files):
    first = registry.append_documents(account, 'intents', documents(10), part=0)
    files = stored_files()
    assert registry.append_documents(account, 'intents', documents(10), part=0.0) == first
    assert summary(registry.get_dataset(account, 'intents')) == first
    assert stored_files() == files


def test_a_part_is_replaced_by_other_content(registry, account, documents, stored_files):
    for part in range(3):
        registry.append_documents(account, 'intents', documents(2, start=part * 2), part=part)
    answer = registry.append_documents(account, 'intents', [Document(text='no label')], part=1)

    dataset = registry.get_dataset(account, 'intents')
    assert answer == summary(dataset)
    assert [(shard.part, shard.rows) for shard in dataset.shards] == [(0, 2), (1, 1), (2, 2)]
    assert (dataset.rows, dataset.labelled) == (5, False)
    assert stored_files() == sorted(f'objects/{shard.key}' for shard in dataset.shards)


def test_part_0_with_other_content_begins_a_new_upload(registry, account, documents, stored_files):
    for part in range(3):
        registry.append_documents(account, 'intents', [Document(text='old')], part=part)
    answer = registry.append_documents(account, 'intents', documents(3), part=0)

    dataset = registry.get_dataset(account, 'intents')
    assert answer == summary(dataset)
    assert [(shard.part, shard.rows) for shard in dataset.shards] == [(0, 3)]
    assert dataset.labelled
    assert stored_files() == [f'objects/{dataset.shards[0].key}']


def test_what_a_run_reads_is_not_replaced(registry, account, documents, stored_files):
    for part in range(2):
        registry.append_documents(account, 'intents', documents(2, start=part * 2), part=part)
    run, _ = registry.create_run(account, 'default', 'run', {}, datasets=['intents'])
    registry.append_documents(account, 'intents', documents(2), part=2)
    before, files = registry.get_dataset(account, 'intents'), stored_files()

    for part in (0, 1):
        with pytest.raises(
            RegistryError, match=f"Part {part} of .*'intents' is there already, .* a run reads the data"
        ):
            registry.append_documents(account, 'intents', documents(5), part=part)
    assert (registry.get_dataset(account, 'intents'), stored_files()) == (before, files)
    # the run was there before this part
    assert registry.append_documents(account, 'intents', documents(5), part=2).rows == 9
    assert registry.get_run_datasets(run.id)['intents'].rows == 4


def test_a_part_is_replaced_or_read_by_a_run_but_not_both(registry, account, documents, stored_files):
    def replace(at):
        try:
            registry.append_documents(account, 'intents', documents(3, start=at), part=0)
        except RegistryError as error:
            assert 'a run reads' in str(error)

    registry.append_documents(account, 'intents', documents(2), part=0)
    with ThreadPoolExecutor(8) as pool:
        replacing = [pool.submit(replace, at) for at in range(1, 8)]
        run, _ = registry.create_run(account, 'default', 'run', {}, datasets=['intents'])
        for future in replacing:
            future.result()
    dataset = registry.get_dataset(account, 'intents')
    assert registry.get_run_datasets(run.id) == {'intents': dataset}
    assert stored_files() == [f'objects/{dataset.shards[0].key}']
    registry.fetch_shards(dataset.shards, registry.home)


def test_a_replacement_that_fails_replaces_nothing(registry, account, documents, stored_files):
    registry.append_documents(account, 'intents', documents(2), part=0)
    before, files = registry.get_dataset(account, 'intents'), stored_files()
    with pytest.raises(DataError):
        registry.append_documents(account, 'intents', [*documents(5), Document()], part=0)
    assert (registry.get_dataset(account, 'intents'), stored_files()) == (before, files)


def test_the_same_documents_under_other_ids_are_the_same_part(registry, account, stored_files):
    def texts(*texts):
        return [Document(text=text, tags={LABEL: 'a'}) for text in texts]

    first = registry.append_documents(account, 'intents', texts('one', 'two'), part=0)
    files = stored_files()
    assert registry.append_documents(account, 'intents', texts('one', 'two'), part=0) == first
    assert stored_files() == files
    copy = registry.append_documents(account, 'copy', texts('one', 'two'))
    assert copy.digest == first.digest != registry.append_documents(account, 'other', texts('one', 'tow')).digest


def test_parts_may_come_in_any_order(registry, account, documents):
    registry.append_documents(account, 'backwards', documents(2, start=2), part=1)
    backwards = registry.append_documents(account, 'backwards', documents(2), part=0)
    registry.append_documents(account, 'forwards', documents(2), part=0)
    forwards = registry.append_documents(account, 'forwards', documents(2, start=2), part=1)
    assert backwards.digest == forwards.digest
    for name, answer in [('backwards', backwards), ('forwards', forwards)]:
        assert summary(registry.get_dataset(account, name)) == answer


@pytest.mark.parametrize('part', [-1, 0.5, True, '1', float('nan'), float('inf'), 2**60])
def test_a_part_is_a_number_from_0_on(registry, account, documents, part):
    with pytest.raises(RegistryError, match='cannot be a part of a data set'):
        registry.append_documents(account, 'intents', documents(1), part=part)


def test_a_malformed_document_in_the_middle_leaves_nothing(registry, account, documents, stored_files):
    many = [*documents(9000), Document(id='odd'), *documents(10)]
    with pytest.raises(DataError, match=r"documents\[9000\] \(id 'odd'\) has no content"):
        registry.append_documents(account, 'intents', many)
    with pytest.raises(RegistryError, match='There is no data set'):
        registry.get_dataset(account, 'intents')
    assert stored_files() == []
    assert registry.append_documents(account, 'intents', documents(2)).rows == 2


def test_a_source_that_breaks_leaves_nothing(registry, account, documents, stored_files):
    def breaks():
        yield from documents(5000)
        raise OSError('the network is gone')

    with pytest.raises(OSError, match='the network is gone'):
        registry.append_documents(account, 'intents', breaks())
    assert stored_files() == []


def test_appends_at_once_get_parts_of_their_own(registry, account, documents):
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda at: registry.append_documents(account, 'intents', documents(5, start=at * 5)), range(20)))
    dataset = registry.get_dataset(account, 'intents')
    assert [shard.part for shard in dataset.shards] == list(range(20))
    assert dataset.rows == 100


def test_the_same_part_at_once_is_stored_once(registry, account, documents, stored_files):
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda _: registry.append_documents(account, 'intents', documents(5), part=0), range(20)))
    assert registry.get_dataset(account, 'intents').rows == 5
    assert len(stored_files()) == 1


def test_an_altered_shard_is_refused(registry, account, documents, tmp_path):
    registry.append_documents(account, 'intents', documents(10))
    dataset = registry.get_dataset(account, 'intents')
    [path] = registry.fetch_shards(dataset.shards, tmp_path)
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match='is not what was stored: its sha256 is another'):
        registry.fetch_shards(dataset.shards, tmp_path)
    path.unlink()
    with pytest.raises(DataError, match='is missing in the object store'):
        registry.fetch_shards(dataset.shards, tmp_path)


@pytest.mark.parametrize(
    'name', ['', '../../etc/passwd', 'a/b', 'a\\b', '.hidden', 'x' * 201, 'a b', 'ü', 'a\0', 'a\n', None, 3]
)
def test_names_are_checked(registry, account, documents, name, stored_files):
    with pytest.raises(RegistryError, match='is not a valid data set name: use 1 to 200 letters'):
        registry.append_documents(account, name, documents(1))
    with pytest.raises(RegistryError, match='is not a valid experiment name'):
        registry.create_run(account, name, 'run', {})
    with pytest.raises(RegistryError, match='is not a valid run name'):
        registry.create_run(account, 'default', name, {})
    assert stored_files() == []


def test_names_are_not_in_paths(registry, account, documents, stored_files):
    registry.append_documents(account, 'secret-project.v1', documents(1))
    assert not any('secret-project' in file for file in stored_files())


def test_an_unknown_data_set_names_near_ones(registry, account, documents):
    with pytest.raises(RegistryError, match="There is no data set 'intents': there are none yet"):
        registry.get_dataset(account, 'intents')
    registry.append_documents(account, 'intents-train', documents(1))
    with pytest.raises(RegistryError, match="There is no data set 'intent-train': similar names: intents-train"):
        registry.get_dataset(account, 'intent-train')


def test_data_sets_belong_to_their_account(registry, account, documents):
    other = registry.create_account('other').id
    registry.append_documents(account, 'intents', documents(3))
    with pytest.raises(RegistryError, match='there are none yet'):
        registry.get_dataset(other, 'intents')
    assert registry.append_documents(other, 'intents', documents(1)).rows == 1
    assert registry.get_dataset(account, 'intents').rows == 3


def test_data_sets_are_listed_page_by_page(registry, account, documents):
    for name in 'abc':
        made = registry.append_documents(account, name, documents(2))
    pages = [registry.list_datasets(account, page, 2) for page in (1, 2, 3)]
    assert [[found.name for found in page.items] for page in pages] == [['c', 'b'], ['a'], []]
    assert pages[0].items[0] == made and pages[0].total == 3
    with pytest.raises(RegistryError, match='There is no page 0 of 50 data sets'):
        registry.list_datasets(account, 0)


def test_parts_are_listed_page_by_page(registry, account, documents):
    for part in (3, 0, 7):
        made = registry.append_documents(account, 'intents', documents(2, part), part=part)
    found, first = registry.list_shards(account, 'intents', 1, 2)
    assert (found, [shard.part for shard in first.items], first.total) == (made, [0, 3], 3)
    assert (
        registry.list_shards(account, 'intents', 2, 2)[1].items == registry.get_dataset(account, 'intents').shards[2:]
    )
    with pytest.raises(RegistryError, match="There is no data set 'intent': similar names: intents"):
        registry.list_shards(account, 'intent')


def test_deleting_a_data_set_leaves_nothing_of_it(registry, account, documents, stored_files):
    registry.append_documents(account, 'kept', documents(2))
    files = stored_files()
    for part in range(3):
        made = registry.append_documents(account, 'gone', documents(2, part), part=part)
    assert registry.delete_dataset(account, 'gone') == made
    assert stored_files() == files
    assert [found.name for found in registry.list_datasets(account).items] == ['kept']
    with pytest.raises(RegistryError, match="There is no data set 'gone'"):
        registry.delete_dataset(account, 'gone')
    assert registry.append_documents(account, 'gone', documents(2)).rows == 2


def test_a_data_set_that_a_run_is_to_read_is_not_deleted(registry, account, documents, stored_files):
    registry.append_documents(account, 'intents', documents(2))
    run, _ = registry.create_run(account, 'default', 'run', {}, datasets=['intents'])
    files = stored_files()
    with pytest.raises(
        RunInProgressError, match="'run' of the experiment 'default' waits and reads .* 'intents': canc"
    ):
        registry.delete_dataset(account, 'intents')
    registry.start_run(run.id, 'host:1')
    with pytest.raises(RunInProgressError, match="'run' of the experiment 'default' is at work and reads"):
        registry.delete_dataset(account, 'intents')
    assert stored_files() == files
    registry.cancel_run(run.id, 'Cancelled')
    registry.delete_dataset(account, 'intents')
    assert stored_files() == []
    for call in (registry.resume_run, registry.get_run_datasets):
        with pytest.raises(RegistryError, match="The data set 'intents' has been deleted since the run was created"):
            call(run.id)
    assert registry.get_run_by_id(run.id).status == 'CANCELLED'


def test_a_data_set_is_deleted_or_read_by_a_run_but_not_both(registry, account, documents):
    for index in range(6):
        registry.append_documents(account, 'intents', documents(2), part=0)
        with ThreadPoolExecutor(2) as pool:
            deleting = pool.submit(registry.delete_dataset, account, 'intents')
            creating = pool.submit(registry.create_run, account, 'default', f'run-{index}', {}, datasets=['intents'])
        if creating.exception() is None:
            assert isinstance(deleting.exception(), RunInProgressError)
            run = creating.result()[0]
            assert registry.get_run_datasets(run.id)['intents'].rows == 2
            registry.fail_run(run.id, 'reason')
        else:
            assert 'There is no data set' in str(creating.exception())
            assert deleting.exception() is None


def test_lookups_of_what_no_name_can_be_find_nothing(registry, account):
    for name in ('a\0b', '\ud800', 'x' * 10_000, "' OR 1=1 --"):
        for call in (registry.get_dataset, registry.delete_dataset, registry.list_shards, registry.get_experiment):
            with pytest.raises(RegistryError, match='There is no'):
                call(account, name)


def test_a_remote_store(documents, tmp_path, stored_files):
    url = f'memory://bucket-{os.getpid()}/data'
    with Registry.open(objects_url=url) as registry:
        account = registry.get_account().id
        registry.append_documents(account, 'intents', documents(10))
        dataset = registry.get_dataset(account, 'intents')
        with pytest.raises(DataError):
            registry.append_documents(account, 'intents', [*documents(1), Document()])
        assert stored_files() == []

        paths = registry.fetch_shards(dataset.shards, tmp_path / 'copies')
        assert open_shards(paths).num_rows == 10
        # a copy that was altered is fetched again; one that is whole is kept
        paths[0].write_bytes(b'altered')
        assert open_shards(registry.fetch_shards(dataset.shards, tmp_path / 'copies')).num_rows == 10
        time = paths[0].stat().st_mtime_ns
        registry.fetch_shards(dataset.shards, tmp_path / 'copies')
        assert paths[0].stat().st_mtime_ns == time
        assert [file.name for file in (tmp_path / 'copies').iterdir()] == [paths[0].name]

        registry.objects.delete(dataset.shards[0].key)
        paths[0].unlink()
        with pytest.raises(DataError, match='is missing in the object store') as raised:
            registry.fetch_shards(dataset.shards, tmp_path / 'copies')
        # a URL may hold credentials
        assert 'bucket' not in str(raised.value)
