"""Which items search which, how often they are encoded, and what the metrics are called."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from training.callbacks.making import make_callbacks, prefixes
from training.callbacks.options import EvaluationOptions
from training.embed import FeatureEmbedder
from training.evaluation import METRICS, evaluate
from training.evaluator import Corpora, Evaluator
from training.progress import Reporter
from training.task import Task

from .callbacks.conftest import Nearer, TinyEncoder, make_examples


@pytest.fixture
def task():
    torch.manual_seed(0)
    return Task({'model': TinyEncoder()}, Nearer()).eval()


def make_corpora(task, tmp_path, encoders=None):
    encoders = encoders or dict(task.encoders.items())

    def embedders(examples):
        return {c.encoder: FeatureEmbedder(encoders[c.encoder], c.store.features) for c in examples.columns}

    return Corpora(encoders, embedders, tmp_path, torch.device('cpu'), Reporter())


def embed(task, examples, column=0):
    items = examples.columns[column].items(np.arange(len(examples)))
    with torch.no_grad():
        return task.encoders['model'](tensor=torch.from_numpy(np.stack(examples.columns[0].store.features.take(items))))


def test_labelled_items_search_others(task, tmp_path):
    query, index = make_examples(tmp_path, 1, 12, 'q'), make_examples(tmp_path, 2, 40, 'i')
    index = dataclasses.replace(index, classes=['class 3', 'class 2', 'other', 'class 0'])  # in another order
    found = Evaluator(EvaluationOptions(query_data='q', limit=5), query, index, make_corpora(task, tmp_path))(task)
    labels = np.array([3, 4, 1, 0])[query.labels]
    expected = evaluate(embed(task, query).numpy(), labels, embed(task, index).numpy(), index.labels, limit=5)
    assert found.metrics == pytest.approx(expected)
    assert tuple(found.metrics) == METRICS and not found.examples


@pytest.mark.parametrize('exclude_self', [True, False])
@pytest.mark.parametrize('distance', ['cosine', 'euclidean'])
@pytest.mark.parametrize('limit', [1, 4])
def test_options_reach_the_search(task, tmp_path, exclude_self, distance, limit):
    examples = make_examples(tmp_path, noise=3)
    options = EvaluationOptions(query_data='q', limit=limit, distance=distance, exclude_self=exclude_self)
    found = Evaluator(options, examples, examples, make_corpora(task, tmp_path))(task)
    embeddings = embed(task, examples).numpy()
    sides = (embeddings, examples.labels) * 2
    expected = evaluate(*sides, limit=limit, distance=distance, exclude_self=exclude_self)
    assert found.metrics == pytest.approx(expected)
    assert (found.metrics['reciprocal_rank'] == 1) == (not exclude_self)


def test_pairs_without_labels_search_their_partners(task, tmp_path):
    """Rows 0 to 9 are pairs of their own but for 0 and 1, which share their first item: both partners are right."""
    pairs = make_examples(tmp_path, items=10, columns=2)
    keys = pairs.columns[0].store.keys
    keys[2] = keys[0]
    groups = np.array([0, 0, *range(1, 9)], np.int32)
    pairs = dataclasses.replace(pairs, labels=groups, classes=[])
    evaluator = Evaluator(EvaluationOptions(query_data='q', limit=2), pairs, pairs, make_corpora(task, tmp_path))
    assert len(evaluator.query) == 9 and len(evaluator.index) == 10
    found = evaluator(task)
    kept = np.array([0, *range(2, 10)])
    expected = evaluate(
        embed(task, pairs, 0).numpy()[kept], groups[kept], embed(task, pairs, 1).numpy(), groups, limit=2
    )
    assert found.metrics == pytest.approx(expected)


def test_data_without_labels_is_refused(task, tmp_path):
    corpora, options = make_corpora(task, tmp_path), EvaluationOptions(query_data='q')
    plain, unlabelled = make_examples(tmp_path, 1), dataclasses.replace(make_examples(tmp_path, 2), labels=None)
    groups = dataclasses.replace(make_examples(tmp_path, 3, columns=2, name='pairs'), classes=[])
    with pytest.raises(ValueError, match='items has no labels to tell which matches are right'):
        Evaluator(options, plain, unlabelled, corpora)
    with pytest.raises(ValueError, match='pairs has no labels .*: give them, or pairs as query_data alone'):
        Evaluator(options, plain, groups, corpora)
    with pytest.raises(ValueError, match='one item only'):
        one = make_examples(tmp_path, 4, 1, 'one')
        Evaluator(options, one, one, corpora)


def test_each_corpus_is_encoded_once_for_each_state_of_the_weights(task, tmp_path):
    encoder = task.encoders['model']
    first, second = make_examples(tmp_path, 1, 12, 'a'), make_examples(tmp_path, 2, 12, 'b')
    index = make_examples(tmp_path, 3, 40, 'i')
    corpora = make_corpora(task, tmp_path)
    evaluators = [
        Evaluator(EvaluationOptions(query_data=query.name, batch_size=100), query, index, corpora)
        for query in (first, second)
    ]
    for evaluator in evaluators:
        evaluator(task, 1)
    assert encoder.forwards == 3
    evaluators[0](task, 1)
    assert encoder.forwards == 3
    before = evaluators[0](task, 2).metrics
    assert encoder.forwards == 5
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn_like(parameter))  # by a callback, without a step of the training
    assert evaluators[0](task, 2).metrics != before
    assert encoder.forwards == 7


def test_batch_size_is_what_goes_through_the_encoder_at_once(task, tmp_path, monkeypatch):
    from training import evaluator

    monkeypatch.setattr(evaluator, 'VECTORS_AT_ONCE', 1)
    examples = make_examples(tmp_path, items=20)
    for batch_size, forwards in ((8, 3), (20, 1)):
        task.encoders['model'].forwards = 0
        options = EvaluationOptions(query_data='q', batch_size=batch_size)
        Evaluator(options, examples, examples, make_corpora(task, tmp_path))(task)
        assert task.encoders['model'].forwards == forwards


def test_examples_tell_which_matches_are_right(task, tmp_path):
    query, index = make_examples(tmp_path, 1, 30, 'q'), make_examples(tmp_path, 2, 40, 'i')
    options = EvaluationOptions(query_data='q', limit=3, gather_examples=True)
    evaluator = Evaluator(options, query, index, make_corpora(task, tmp_path))
    found = evaluator(task)
    assert 10 <= len(found.examples) <= 20 and found.examples.keys() == found.relevance.keys()
    for title, matches in found.examples.items():
        row = int(title.split()[1])
        rows = [int(match.split()[1]) for match in matches]
        assert found.relevance[title] == [bool(index.labels[other] == query.labels[row]) for other in rows]
    assert not evaluator(task, examples=False).examples


@pytest.fixture
def clip(tmp_path):
    """Two encoders, and pairs of a text and an image (to them: vectors)."""
    torch.manual_seed(1)
    task = Task({'clip-text': TinyEncoder(), 'clip-vision': TinyEncoder()}, Nearer()).eval()
    texts, images = make_examples(tmp_path / 'texts', 1, 20), make_examples(tmp_path / 'images', 2, 20)
    columns = (
        dataclasses.replace(texts.columns[0], encoder='clip-text'),
        dataclasses.replace(images.columns[0], encoder='clip-vision'),
    )
    pairs = dataclasses.replace(texts, columns=columns, labels=np.arange(20, dtype=np.int32), classes=[])
    return task, pairs, make_corpora(task, tmp_path)


@pytest.mark.parametrize(
    ('model', 'index_model', 'prefix'),
    [
        (None, None, 'clip-text-to-clip-vision_'),
        ('clip-text', 'clip-vision', 'clip-text-to-clip-vision_'),
        ('clip-vision', 'clip-text', 'clip-vision-to-clip-text_'),
        ('clip-vision', None, 'clip-vision-to-clip-text_'),
        (None, 'clip-text', 'clip-text-to-clip-text_'),
    ],
)
def test_the_models_of_a_clip_search_each_other(clip, model, index_model, prefix):
    task, pairs, corpora = clip
    options = EvaluationOptions(query_data='q', model=model, index_model=index_model, limit=3)
    evaluator = Evaluator(options, pairs, pairs, corpora)
    assert evaluator.prefix == prefix
    asked, answered = prefix.rstrip('_').split('-to-')
    sides = {}
    with torch.no_grad():
        for column in pairs.columns:
            vectors = torch.from_numpy(np.stack(column.store.features.take(np.arange(20))))
            sides[column.encoder] = task.encoders[column.encoder](tensor=vectors).numpy()
    expected = evaluate(
        sides[asked], pairs.labels, sides[answered], pairs.labels, limit=3, exclude_self=asked == answered
    )
    assert evaluator(task).metrics == pytest.approx(expected)


def test_models_that_are_not_there_are_refused(clip, task, tmp_path):
    with pytest.raises(ValueError, match="model='clip', but this model has clip-text, clip-vision"):
        Evaluator(EvaluationOptions(query_data='q', model='clip'), clip[1], clip[1], clip[2])
    with pytest.raises(ValueError, match="index_model='clip-text', but this model has model"):
        plain = make_examples(tmp_path)
        options = EvaluationOptions(query_data='q', index_model='clip-text')
        Evaluator(options, plain, plain, make_corpora(task, tmp_path))
    texts = dataclasses.replace(clip[1], columns=clip[1].columns[:1])
    with pytest.raises(ValueError, match='items holds nothing that clip-vision reads'):
        Evaluator(EvaluationOptions(query_data='q', model='clip-vision'), texts, texts, clip[2])


def test_metrics_of_several_evaluations_are_told_apart(clip, task, tmp_path):
    def named(*options):
        examples = make_examples(tmp_path)
        given = [EvaluationOptions(query_data='q', **values) for values in options]
        return prefixes([Evaluator(o, examples, examples, make_corpora(task, tmp_path)) for o in given])

    assert named({}, {}, {}) == ['', 'evaluation-2_', 'evaluation-3_']
    assert named({'name': 'a'}, {}, {'name': 'a'}) == ['a_', '', 'evaluation-3_a_']
    options = [{}, {'model': 'clip-vision'}, {'name': 'toys'}]
    evaluators = [Evaluator(EvaluationOptions(query_data='q', **o), clip[1], clip[1], clip[2]) for o in options]
    assert prefixes(evaluators) == [
        'clip-text-to-clip-vision_',
        'clip-vision-to-clip-text_',
        'toys_clip-text-to-clip-vision_',
    ]
    callbacks = make_callbacks(None, evaluators)
    assert [member.prefix for member in callbacks.members] == prefixes(evaluators)
