"""The simulated shop: the same from the same seed, users as they are described, calls that the service takes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from examples.clicks.shop import NEEDS, WISHES, Shop
from examples.clicks.users import Behaviour, visits
from registry import Registry


@pytest.fixture(scope='module')
def shop():
    return Shop()


def clicks_by_position(shop, count=1500, **behaviour):
    """Views and clicks of every position, and whether each click was of something that meets the need."""
    clicks, wanted = np.zeros(10), []
    numbers = {found.object_id: number for number, found in enumerate(shop.products)}
    for visit in visits(shop, count, behaviour=Behaviour(**behaviour)):
        shown = [result['object_id'] for result in visit.session['search_results']]
        relevance = shop.relevance(visit.query)
        for event in visit.events:
            clicks[shown.index(event['object_id'])] += 1
            wanted.append(relevance[numbers[event['object_id']]] >= 0.5)
    return clicks / count, float(np.mean(wanted))


def test_a_seed_makes_one_shop_and_one_history(shop):
    again, other = Shop(), Shop(seed=1)
    assert again.products == shop.products != other.products and again.queries == shop.queries
    assert list(visits(shop, 30)) == list(visits(again, 30)) != list(visits(shop, 30, seed=1))


def test_the_catalogue_is_complete(shop):
    assert len({found.object_id for found in shop.products}) == len(shop.titles) == len(shop.products) == 216
    assert len({query.text for query in shop.queries}) == len(shop.queries) == 3 * len(NEEDS) * 8 * len(WISHES)
    for query in shop.queries:
        relevance = shop.relevance(query)
        assert (relevance >= 0.5).sum() == 18 and relevance.min() > 0


def test_no_text_says_what_meets_a_need(shop):
    needs = {word for phrases in NEEDS for phrase in phrases for word in phrase.split()}
    for kinds in NEEDS.values():
        assert not needs & {word for kind in kinds for word in kind.split()}


def test_users_look_at_the_top_first(shop):
    flat, _ = clicks_by_position(shop, eta=0.0)
    steep, _ = clicks_by_position(shop, eta=1.0)
    assert flat[9] > 0.7 * flat[0] and steep[9] < 0.25 * steep[0]


def test_users_click_what_they_want_and_noise_is_noise(shop):
    _, wanted = clicks_by_position(shop, noise=0.0)
    _, noisy = clicks_by_position(shop, noise=0.2)
    _, chance = clicks_by_position(shop, at_random=True, noise=0.0)
    shown = []
    for visit in visits(shop, 500):
        places = [int(result['object_id'][1:]) for result in visit.session['search_results']]
        shown.append((shop.relevance(visit.query)[places] >= 0.5).mean())
    assert wanted > 0.75 > 0.5 > noisy > 1.3 * chance
    # those who see more of what they want click more, and so a little more than its share is clicked
    assert chance == pytest.approx(np.mean(shown), abs=0.15)


def test_users_who_saw_nothing_of_use_say_so_sometimes(shop):
    found = list(visits(shop, 1500, behaviour=Behaviour(flags=0.5)))
    flagged = [visit for visit in found if visit.is_irrelevant]
    assert 50 < len(flagged) < 1000 and not any(visit.events for visit in flagged)
    assert not any(visit.is_irrelevant for visit in visits(shop, 500, behaviour=Behaviour(flags=0)))


def test_queries_have_a_head_and_a_tail(shop):
    counts = Counter(visit.query.text for visit in visits(shop, 3000)).most_common()
    assert counts[0][1] > 5 * counts[len(counts) // 2][1] and len(counts) > 200
    chosen = shop.queries[:5]
    assert {visit.query for visit in visits(shop, 100, queries=chosen)} == set(chosen)


def test_the_service_takes_what_a_front_end_would_send(shop):
    with Registry.open() as registry:
        account = registry.get_account().id
        for visit in visits(shop, 20):
            registry.clicks.register_session(account, **visit.session)
            registry.clicks.register_events(account, visit.session['session_id'], visit.events)
        batch = registry.clicks.release_batch(account, 'r')
        kept = list(registry.clicks.all_batch_sessions(account, batch.id))
    assert [session.search_query for session in kept] == [visit.query.text for visit in visits(shop, 20)]
    assert sum(len(session.events) for session in kept) == sum(len(visit.events) for visit in visits(shop, 20))
