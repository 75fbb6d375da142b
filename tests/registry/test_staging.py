import pytest

from registry.objects import ObjectStore
from registry.staging import Staging


@pytest.fixture
def objects(tmp_path):
    return ObjectStore(str(tmp_path / 'objects'))


def names(folder):
    return sorted(path.name for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('is_kept', [False, True])
def test_what_cannot_be_settled_is_settled_at_the_next_start(tmp_path, objects, is_kept):
    """The database was lost, perhaps while it committed."""

    def unknown(key):
        raise OSError('the database is gone')

    staging = Staging(tmp_path / 'staging', objects, unknown)
    with pytest.raises(RuntimeError, match='no commit'), staging.stage('shards/a.arrow') as staged:
        staged.path.write_text('rows')
        objects.put(staged.path, staged.key)
        raise RuntimeError('no commit')
    staging.close()
    assert names(tmp_path / 'objects') == ['a.arrow']

    after = Staging(tmp_path / 'staging', objects, lambda key: is_kept)
    after.recover()
    assert names(tmp_path / 'objects') == (['a.arrow'] if is_kept else [])
    after.close()
    assert list((tmp_path / 'staging').iterdir()) == []


def test_a_url_of_a_folder_is_that_folder(tmp_path):
    store = ObjectStore(f'file://{tmp_path / "objects"}')
    (tmp_path / 'one').write_text('text')
    store.put(tmp_path / 'one', 'shards/one')
    assert store.is_local and (tmp_path / 'objects' / 'shards' / 'one').read_text() == 'text'
