"""A batch that is dealt out: to learn from, to compare trainings by, and to judge the best of them by."""

from __future__ import annotations

import pytest

from finetuner.excepts import DataError
from registry import Registry
from registry.shards import DatasetReader
from tests.training.iterations.shopkeeper import METHOD
from training.clicks.feedback import query_key
from training.iterations.material import gather
from training.methods.method import Method


@pytest.fixture
def registry():
    with Registry.open() as registry:
        yield registry


@pytest.fixture
def deal(registry, tmp_path):
    """Deal out what has collected."""

    def gathered(seed: int = 0, **options):
        account = registry.get_account().id
        batch = registry.clicks.release_batch(account, 'all')
        method = Method.model_validate({**METHOD, 'model': 'all-minilm-l6-v2', **options})
        return gather(registry, account, batch.id, method, seed, tmp_path)

    return gathered


def queries(material):
    """Of the three parts."""
    learned = DatasetReader([material.shard], 'clicks')
    asked = learned.contents(0, 0, len(learned))
    held_out = [[entry.query for entry in part.sessions] for part in (material.validation, material.test)]
    return [{query_key(query) for query in part} for part in (asked, *held_out)]


def test_no_query_is_in_two_of_the_three_parts(registry, deal, click):
    account = registry.get_account().id
    click(registry, account, 600)
    # what was searched for again, written in another way
    for number, query in enumerate(
        ['Stay  DRY, red', 'stay dry, red', ' LESS noise, black ', 'less noise, black'] * 10
    ):
        shown = [{'object_id': item, 'meta': {'text': f'the {item}'}} for item in ('lantern', 'poncho')]
        registry.clicks.register_session(account, f'again {number}', query, shown)
        registry.clicks.register_events(account, f'again {number}', [{'event_id': 'e', 'object_id': 'poncho'}])
    learned, compared, judged = queries(deal())
    assert len(learned) > len(judged) > 10 < len(compared)
    assert not learned & compared and not learned & judged and not compared & judged


def test_another_seed_deals_otherwise_and_the_same_one_alike(registry, deal, click):
    click(registry, registry.get_account().id, 300)
    first, again, other = (queries(deal(seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ('events', 'sentence'), [(None, 'do the events arrive?'), ({'buy': 1}, 'arrive, and are they')]
)
def test_sessions_of_which_none_has_a_click_are_told(registry, deal, events, sentence):
    account = registry.get_account().id
    for number in range(5):
        registry.clicks.register_session(account, f's{number}', f'query {number}', [{'object_id': 'a'}])
    if events:
        registry.clicks.register_events(account, 's1', [{'event_id': 'e', 'object_id': 'a'}])
    with pytest.raises(DataError, match='^none of the 5 sessions of the batch has a click: nothing can be') as told:
        deal(clicks={'events': events})
    assert sentence in str(told.value)
