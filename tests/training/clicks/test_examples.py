from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetuner.excepts import DataError
from registry.shards import write_shard
from tests.training.clicks.conftest import feedback, session
from training.clicks.confidence import windowed_confidences
from training.clicks.examples import judge, make_triplets, training_documents
from training.clicks.options import ClickOptions
from training.losses import objective_shape

PLAIN = ClickOptions(position_bias='none')
ITEMS = {letter: f'item {letter}' for letter in 'abcdefgh'}


def triplets(*sessions, options=PLAIN, seed=0):
    """(query, positive, negative): weight."""
    found = make_triplets(judge(feedback(*sessions), options), options, seed)
    return {(query, positive, negative): weight for query, positive, negative, weight in found}


def test_clicked_before_not_clicked():
    assert triplets(session('q', 'abcd', 'bd')) == {
        ('q', 'b', 'a'): 1,
        ('q', 'b', 'c'): 1,
        ('q', 'd', 'a'): 1,
        ('q', 'd', 'c'): 1,
    }


def test_sessions_in_which_nothing_or_all_is_clicked_teach_nothing():
    with pytest.raises(DataError, match='2 sessions give nothing to learn from: none has a clicked result beside'):
        triplets(session('q', 'ab'), session('r', 'ab', 'ab'))


def test_a_click_far_down_counts_more():
    options = ClickOptions(position_bias='power', eta=1, max_weight=3)
    found = triplets(
        session('q', 'abcdef', 'a'), session('r', 'abcdef', 'b'), session('s', 'abcdef', 'f'), options=options
    )
    by_query = {query: weight for (query, _, _), weight in found.items()}
    assert by_query['r'] / by_query['q'] == pytest.approx(2)
    assert by_query['s'] / by_query['q'] == pytest.approx(3), 'and no more than max_weight'
    assert np.mean(list(found.values())) == pytest.approx(1)


def test_propensities_may_be_given():
    options = ClickOptions(position_bias=[1.0, 0.5])
    found = triplets(session('q', 'abc', 'a'), session('r', 'abc', 'c'), options=options)
    assert found['r', 'c', 'a'] / found['q', 'a', 'b'] == pytest.approx(2), 'positions beyond are as the last'


def test_a_triplet_is_as_sure_as_the_less_sure_of_its_results():
    options = ClickOptions(position_bias='none', confidence='windowed')
    ranks = [0.9, 0.7, 0.4, 0.3, 0.2]
    sure = windowed_confidences(np.array(ranks), np.array([1, 0, 0, 0, 0]))
    found = triplets(session('q', 'abcde', 'a', ranks=ranks), options=options)
    expected = {('q', 'a', item): min(sure[0], sure[place]) for place, item in enumerate('bcde', 1)}
    expected = {triplet: weight for triplet, weight in expected.items() if weight > 0}
    assert 2 <= len(expected) < 4, 'the least sure result counts nothing'
    mean = np.mean(list(expected.values()))
    assert found == pytest.approx({triplet: weight / mean for triplet, weight in expected.items()})


def test_events_weigh():
    from registry.click_records import ClickEvent
    from tests.training.clicks.conftest import TIME

    bought = session('q', 'ab', events=[ClickEvent('1', 'a', 'purchase', TIME)])
    entries = feedback(bought, session('r', 'ab', 'a'), event_weights={'purchase': 3, 'click': 1})
    found = {triplet.query: triplet.weight for triplet in make_triplets(judge(entries, PLAIN), PLAIN)}
    assert found['q'] / found['r'] == 3


def test_what_an_irrelevant_session_showed_is_worse_than_what_others_clicked_for_its_query():
    found = triplets(
        session('Q', 'ab', 'a'), session('q ', 'cda', irrelevant=True), session('r', 'ef', irrelevant=True)
    )
    assert set(found) == {('Q', 'a', 'b')}, 'it showed the item that others clicked, and no other: they disagree'
    found = triplets(session('Q', 'ab', 'a'), session('q ', 'cd', 'c', irrelevant=True))
    assert set(found) == {('Q', 'a', 'b'), ('q ', 'a', 'c'), ('q ', 'a', 'd')}


def test_some_of_the_negatives_are_drawn_by_the_seed():
    options = ClickOptions(position_bias='none', negative_downsampling=0.5)
    shown = [f'i{number}' for number in range(21)]
    one, again, other = (set(triplets(session('q', shown, ['i0']), options=options, seed=seed)) for seed in (1, 1, 2))
    assert len(one) == 10 and one == again != other
    assert len(triplets(session('q', 'ab', 'a'), options=options)) == 1, 'at least one'


def test_results_whose_content_is_missing_are_left_out():
    entries = feedback(session('q', 'abz', 'a'), session('r', 'yaz', 'y'), session('s', 'zb', 'b'))
    judged = judge(entries, PLAIN, ITEMS)
    assert [entry.items for entry in judged.sessions] == [['a', 'b']] and judged.missing == {'y', 'z'}
    assert judged.sessions[0].positions.tolist() == [0, 1]


@pytest.mark.parametrize(
    ('loss', 'expected'),
    [
        (
            'CosineProbMarginRankingLoss',
            [('q', 'item b', 'item a'), ('q', 'item b', 'item c'), ('r', 'item a', 'item b')],
        ),
        ('MultipleNegativeRankingLoss', [('q', 'item b'), ('r', 'item a')]),
        ('TripletMarginLoss', [('q', 'item b'), ('r', 'item a')]),
        ('CosineSimilarityLoss', [('q', 'item a'), ('q', 'item b'), ('q', 'item c'), ('r', 'item a'), ('r', 'item b')]),
    ],
)
def test_documents_of_every_shape(loss, expected, tmp_path):
    judged = judge(feedback(session('q', 'abc', 'b'), session('r', 'ab', 'a'), session('q', 'abc', 'b')), PLAIN, ITEMS)
    documents = list(training_documents(judged, PLAIN, ITEMS, objective_shape(loss)))
    assert set(expected) == {tuple(chunk.text for chunk in document.chunks) for document in documents}
    info = write_shard(documents, tmp_path / 'shard.arrow')
    assert info.shape == ('triplets' if 'Prob' in loss else 'pairs')
    assert info.labelled == (loss in ('MultipleNegativeRankingLoss', 'TripletMarginLoss'))
    assert info.scored == (loss in ('CosineProbMarginRankingLoss', 'CosineSimilarityLoss'))


def test_scores_of_pairs_are_clicks_per_look():
    options = ClickOptions(position_bias=[1.0, 0.5])
    sessions = [session('q', 'ab', 'a'), session('q', 'ab', 'b'), session('q', 'ab')]
    judged = judge(feedback(*sessions), options, ITEMS)
    found = {
        document.chunks[1].text: document.tags['finetuner_score']
        for document in training_documents(judged, options, ITEMS, 'scored pairs')
    }
    mean = 2 / (3 + 1.5)
    assert found == pytest.approx({'item a': (1 + mean) / 4, 'item b': (1 + mean) / 2.5})


def test_images_are_named_by_their_files(tmp_path):
    judged = judge(feedback(session('q', 'ab', 'a')), PLAIN, {'a': tmp_path / 'a.png', 'b': tmp_path / 'b.png'})
    (document,) = training_documents(judged, PLAIN, {'a': Path('/x/a.png'), 'b': Path('/x/b.png')}, 'triplets')
    assert [(chunk.text, chunk.uri) for chunk in document.chunks] == [
        ('q', None),
        (None, '/x/a.png'),
        (None, '/x/b.png'),
    ]
    assert write_shard([document], tmp_path / 'shard.arrow').modalities == ('text', 'image', 'image')


def test_weights_undo_the_bias_of_positions(shop, simulate):
    """What is wanted is clicked less often further down; by its weights it is worth the same."""
    sessions = simulate(2500, eta=1.0, noise=0.0)
    numbers = {found.object_id: number for number, found in enumerate(shop.products)}
    relevance = {query.text: shop.relevance(query) for query in shop.queries}

    def worth_of_the_lower_half(options):
        """As a part of that of the upper half, over items that meet the need."""
        judged = judge(sessions, options)
        worth = {True: [], False: []}
        for entry, gain in zip(judged.sessions, judged.gains(options.max_weight), strict=True):
            for item, position, value in zip(entry.items, entry.positions, gain, strict=True):
                if relevance[entry.query][numbers[item]] >= 0.5:
                    worth[position >= 5].append(value)
        return np.mean(worth[True]) / np.mean(worth[False])

    assert worth_of_the_lower_half(PLAIN) < 0.5
    assert worth_of_the_lower_half(ClickOptions(position_bias='estimated', max_weight=30)) == pytest.approx(1, abs=0.3)
