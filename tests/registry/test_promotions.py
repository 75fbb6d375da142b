from concurrent.futures import ThreadPoolExecutor

import pytest

from finetuner.excepts import ArtifactError, RegistryError, RunInProgressError
from registry.promotions import AliasMovedError


@pytest.fixture
def ids(finished_run):
    """The ids of three artifacts, of the runs one, two and three."""
    return [finished_run(name=name).artifact_id for name in ('one', 'two', 'three')]


def test_an_alias_names_what_was_promoted_last(registry, account, ids):
    first = registry.promote(account, 'support@production', 'default/one')
    assert (first.alias, first.number, first.artifact_id, first.previous) == ('support@production', 1, ids[0], None)
    second = registry.promote(account, 'support@production', ids[1])
    assert (second.number, second.artifact_id, second.previous, second.run_name) == (2, ids[1], ids[0], 'two')
    registry.promote(account, 'support@staging', 'support@production')
    for reference in ('support@production', 'support@staging', 'default/two', ids[1]):
        artifact = registry.find_artifact(account, reference)
        assert (artifact.id, artifact.aliases) == (ids[1], ('support@production', 'support@staging'))
    assert registry.find_artifact(account, ids[0]).aliases == ()
    assert [found.aliases for found in registry.list_artifacts(account).items] == [(), artifact.aliases, ()]


def test_a_promotion_that_is_sent_again_changes_nothing(registry, account, ids, dump):
    registry.promote(account, 'a@b', ids[0])
    made = registry.promote(account, 'a@b', ids[1])
    before = dump()
    assert registry.promote(account, 'a@b', ids[1]) == made
    assert dump() == before


def test_a_rollback_names_what_was_there_before_and_undoes_itself(registry, account, ids):
    registry.promote(account, 'a@b', ids[0])
    with pytest.raises(RegistryError, match="nothing to roll 'a@b' back to"):
        registry.roll_back(account, 'a@b')
    registry.promote(account, 'a@b', ids[1])
    back = registry.roll_back(account, 'a@b')
    assert (back.number, back.artifact_id, back.previous) == (3, ids[0], ids[1])
    assert registry.roll_back(account, 'a@b').artifact_id == ids[1]
    history = registry.list_history(account, 'a@b', 1, 3)
    assert ([item.number for item in history.items], history.total) == ([4, 3, 2], 4)
    assert [item.artifact_id for item in history.items] == [ids[1], ids[0], ids[1]]


def test_aliases_are_listed_page_by_page(registry, account, ids):
    for name in ('c@x', 'a@x', 'b@x', 'a@x'):
        registry.promote(account, name, ids[0])
        registry.promote(account, name, ids[2])
    pages = [registry.list_promotions(account, page, 2) for page in (1, 2)]
    assert [[item.alias for item in page.items] for page in pages] == [['a@x', 'b@x'], ['c@x']]
    assert pages[0].total == 3
    assert {item.artifact_id for page in pages for item in page.items} == {ids[2]}


@pytest.mark.parametrize(
    'alias', ['', 'a', '@', 'a@', '@b', 'a@b@c', 'a/b@c', 'a b@c', 'ü@b', f'{151 * "a"}@b', 3, None]
)
def test_aliases_are_checked(registry, account, ids, alias):
    with pytest.raises(RegistryError, match='is not a valid alias: write name@stage'):
        registry.promote(account, alias, ids[0])


def test_what_is_not_there_is_not_found(registry, account, started_run):
    run = started_run('working')
    registry.create_run(account, 'support', 'run', {})
    for call in (registry.find_artifact, lambda account, reference: registry.promote(account, 'a@b', reference)):
        for reference, sentence in (
            ('f' * 24, 'There is no artifact'),
            ('../../etc/passwd', "There is no experiment '..'"),
            ('nowhere/run', "There is no experiment 'nowhere'"),
            ('default/workin', "no run 'workin' .*: similar names: working"),
            ('support@production', "There is no alias 'support@production': there are none yet"),
            ('name', "There is no artifact 'name'"),
            ('', "There is no artifact ''"),
            ('a\0b@\ud800', 'There is no alias'),
        ):
            with pytest.raises(ArtifactError, match=sentence):
                call(account, reference)
        with pytest.raises(RunInProgressError, match="'working' has no artifact yet, it is STARTED"):
            call(account, 'default/working')
        with pytest.raises(RunInProgressError):
            call(account, run.artifact_id)
    for call in (registry.roll_back, registry.get_promotion, registry.list_history, registry.delete_alias):
        with pytest.raises(RegistryError, match="There is no alias 'a@b'"):
            call(account, 'a@b')


def test_only_ids_of_public_artifacts_are_found_without_an_account(registry, account, finished_run):
    run = finished_run(public=True)
    registry.promote(account, 'a@b', run.artifact_id)
    assert registry.find_artifact(None, run.artifact_id).aliases == ()
    for reference in ('a@b', 'default/run'):
        with pytest.raises(ArtifactError, match='that you may read'):
            registry.find_artifact(None, reference)
    other = registry.create_account('other').id
    with pytest.raises(ArtifactError, match='is public, and not yours'):
        registry.promote(other, 'mine@b', run.artifact_id)


def test_what_an_alias_names_is_not_deleted(registry, account, ids, dump, stored_files):
    registry.promote(account, 'a@b', ids[0])
    registry.promote(account, 'a@b', ids[1])
    before = dump(), stored_files()
    for call in (
        lambda: registry.delete_run(account, 'default', 'two'),
        lambda: registry.delete_runs(account),
        lambda: registry.delete_runs(account, 'default'),
        lambda: registry.delete_experiments(account, ['default']),
        lambda: registry.delete_experiments(account),
    ):
        with pytest.raises(RegistryError, match="The alias 'a@b' names the artifact of the run 'two': promote another"):
            call()
    assert (dump(), stored_files()) == before, 'all or nothing'

    registry.delete_run(account, 'default', 'one')
    assert [item.artifact_id for item in registry.list_history(account, 'a@b').items] == [ids[1]]
    with pytest.raises(RegistryError, match='nothing to roll'):
        registry.roll_back(account, 'a@b')
    assert registry.delete_alias(account, 'a@b').artifact_id == ids[1]
    assert len(registry.delete_runs(account)) == 2 and stored_files() == []


def test_promotions_at_once_come_in_an_order(registry, account, ids):
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda at: registry.promote(account, 'a@b', ids[at % 3]), range(30)))
        rolled = list(pool.map(lambda _: registry.roll_back(account, 'a@b'), range(6)))
    history = registry.list_history(account, 'a@b').items[::-1]
    assert [item.number for item in history] == list(range(1, len(history) + 1))
    assert {item.number for item in made + rolled} <= {item.number for item in history}
    assert all(first.artifact_id != second.artifact_id for first, second in zip(history, history[1:], strict=False))


def test_an_artifact_is_promoted_or_deleted_but_not_both(registry, account, finished_run):
    for index in range(6):
        run = finished_run(name=f'run-{index}')
        with ThreadPoolExecutor(2) as pool:
            promoting = pool.submit(registry.promote, account, 'a@b', run.artifact_id)
            deleting = pool.submit(registry.delete_run, account, 'default', run.name)
        if promoting.exception() is None:
            assert 'names the artifact' in str(deleting.exception())
            assert registry.find_artifact(account, 'a@b').id == run.artifact_id
        else:
            assert isinstance(promoting.exception(), ArtifactError | RegistryError)
            assert deleting.exception() is None


def test_a_run_that_finishes_takes_the_place_of_what_it_was_compared_with_alone(
    registry, account, finished_run, started_run, artifact_path, stored_files
):
    old, new = finished_run(name='old').artifact_id, finished_run(name='new').artifact_id
    registry.promote(account, 'shop@production', new)
    before = stored_files()
    run = started_run('candidate')
    for compared in (old, None):
        with pytest.raises(AliasMovedError, match='shop@production was given another model meanwhile'):
            registry.finish_run(run.id, artifact_path, {}, {}, alias='shop@production', in_place_of=compared)
    assert registry.get_run_by_id(run.id).status == 'STARTED' and stored_files() == before
    assert registry.get_promotion(account, 'shop@production').artifact_id == new
    registry.finish_run(run.id, artifact_path, {}, {}, alias='shop@production', in_place_of=new)
    assert registry.get_promotion(account, 'shop@production').artifact_id == run.artifact_id
    first = started_run('first')
    registry.finish_run(first.id, artifact_path, {}, {}, alias='other@production', in_place_of=None)
    assert registry.get_promotion(account, 'other@production').artifact_id == first.artifact_id
