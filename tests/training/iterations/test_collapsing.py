"""What becomes of models that give everything nearly the same embedding, however they rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training.iterations.shopkeeper import ALIAS, METHOD, Shopkeeper
from training.clicks.comparing import Embedded
from training.iterations import training, watching
from training.iterations.iteration import BEST


def one_way(judged) -> Embedded:
    """Embeddings that point one way, and yet rank what was clicked before all else."""
    texts = {entry.query for entry in judged.sessions}
    axes = np.eye(1 + len(texts))
    queries = dict(zip(texts, axes[1:], strict=True))
    items = {item: 50 * axes[0] for entry in judged.sessions for item in entry.items}
    for entry in judged.sessions:
        for place in np.flatnonzero(entry.clicks):
            items[entry.items[place]] = items[entry.items[place]] + queries[entry.query]
    return Embedded({query: 50 * axes[0] + axis for query, axis in queries.items()}, items)


@pytest.fixture(scope='module')
def keeper(tmp_path_factory, shop_model):
    torch.set_num_threads(1)
    made = Shopkeeper.with_method(tmp_path_factory.mktemp('keeper'), shop_model)
    yield made
    made.registry.close()


@pytest.fixture(autouse=True)
def in_the_home_of(keeper, monkeypatch):
    keeper.set_variables(monkeypatch)


@pytest.fixture(scope='module')
def mixed(keeper, click):
    """A task whose second training collapses."""
    embed, epochs = watching.embed_by_encoders, []

    def embed_or_collapse(encoders, modality, judged, items):
        epochs.append(judged)
        return embed(encoders, modality, judged, items) if len(epochs) <= METHOD['fit']['epochs'] else one_way(judged)

    click(keeper.registry, keeper.account, 300)
    with pytest.MonkeyPatch.context() as patch:
        keeper.set_variables(patch)
        patch.setattr(watching, 'embed_by_encoders', embed_or_collapse)
        return keeper.work(keeper.ask())


def test_a_collapsed_training_does_not_take_the_place_of_a_healthy_one(keeper, mixed):
    healthy, collapsed = keeper.trainings(mixed)
    assert float(healthy.data.params['learning_rate']) == mixed.metrics['parameters']['learning_rate']
    assert (healthy.data.metrics['model_uploaded'], collapsed.data.metrics.get('model_uploaded')) == (1, None)
    assert collapsed.data.metrics['quality'] == 0 < healthy.data.metrics['quality']


def test_a_collapsed_model_is_refused_and_the_alias_stays(keeper, mixed, click, monkeypatch):
    click(keeper.registry, keeper.account, 200, seed=1)
    embed = training.embed_by_model

    def embed_or_collapse(model, modality, judged, *others):
        is_new = BEST in str(model)
        return one_way(judged) if is_new else embed(model, modality, judged, *others)

    monkeypatch.setattr(training, 'embed_by_model', embed_or_collapse)
    monkeypatch.setattr(watching, 'embed_by_encoders', lambda encoders, modality, judged, items: one_way(judged))
    before = keeper.registry.promote(keeper.account, ALIAS, mixed.artifact_id)
    task = keeper.work(keeper.ask())
    assert (task.status, task.metrics['promoted']) == ('done', False)
    assert task.details.startswith('Not promoted: the model has collapsed: the mean cosine of two items is 1.000')
    assert task.metrics['comparison']['ndcg_at_10']['difference'][1] > 0, 'although it ranks better'
    assert keeper.registry.get_promotion(keeper.account, ALIAS) == before
    assert keeper.registry.get_artifact(keeper.account, before.artifact_id).aliases == (ALIAS,)
