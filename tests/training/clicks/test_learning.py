"""From sessions to a better model, and from random clicks to none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import training
from examples.clicks.model import write_shop_model
from finetuner.inference.text_encoder import TextEncoder
from training.clicks.comparing import embed_sessions, judge_model
from training.clicks.examples import judge, training_documents
from training.clicks.options import ClickOptions
from training.clicks.split import split_sessions
from training.losses import objective_shape

OPTIONS = ClickOptions(negative_downsampling=0.5)


@pytest.fixture(scope='module')
def shop_model(shop, tmp_path_factory):
    return write_shop_model(shop, tmp_path_factory.mktemp('shop') / 'model')


@pytest.fixture
def learn(shop, shop_model, simulate, tmp_path, monkeypatch):
    """Trains on simulated sessions, and gives the verdict over those that were held out."""
    kept = {}
    torch.set_num_threads(1)  # two would wait for each other longer than they compute

    def keep(task):
        kept['encoder'] = task.by_name['model'].eval()
        return dict(task.by_name)

    def no_artifact(encoders, *, target, **_):
        target.write_bytes(b'')
        return target

    # what the artifact is made of is tested elsewhere, and takes longer than all of this
    monkeypatch.setattr('training.pipeline.for_export', keep)
    monkeypatch.setattr('training.pipeline.build_artifact', no_artifact)

    def embedder(encoder):
        def embed(texts):
            with torch.no_grad():
                inputs = encoder.preprocessor.collate(encoder.preprocessor.features(list(texts)))
                return encoder(**{name: torch.as_tensor(value) for name, value in inputs.items()}).float().numpy()

        return embed

    def run(loss, loss_options=None, sessions=1500, **behaviour):
        split = split_sessions(simulate(sessions, **behaviour), 0.25)
        seen = judge(split.train, OPTIONS, shop.titles)
        held_out = judge(split.test, OPTIONS, shop.titles, seen.propensities)
        documents = list(training_documents(seen, OPTIONS, shop.titles, objective_shape(loss, loss_options)))
        training.fit(
            str(shop_model),
            documents,
            directory=tmp_path / 'run',
            loss=loss,
            loss_options=loss_options,
            epochs=3,
            batch_size=64,
            learning_rate=2e-3,
            device='cpu',
        )
        models = [
            embed_sessions(held_out, shop.titles, embedder(encoder), embedder(encoder))
            for encoder in (TextEncoder.load(shop_model).eval(), kept['encoder'])
        ]
        return judge_model(held_out, *models)

    return run


@pytest.mark.parametrize(
    ('loss', 'options'),
    [
        ('MultipleNegativeRankingLoss', {}),
        pytest.param('ProbMarginRankingLoss', {}, marks=pytest.mark.slow),
        pytest.param('CosineProbMarginRankingLoss', {'margin': 0.05}, marks=pytest.mark.slow),
    ],
)
def test_clicks_make_a_model_better_on_queries_that_it_has_not_seen(learn, loss, options):
    found = learn(loss, options)
    main = found.metrics['ndcg_at_10']
    assert found.refusal is None, found.refusal
    assert main.is_better and main.difference.mean > 0.05
    assert found.metrics['reciprocal_rank'].difference.mean > 0 and found.sessions > 50


def test_random_clicks_promote_nothing(learn):
    found = learn('CosineProbMarginRankingLoss', {'margin': 0.05}, sessions=400, at_random=True)
    assert found.refusal is not None
    assert 'that is not better beyond noise' in found.refusal or 'has collapsed' in found.refusal


def test_a_collapsed_model_is_refused_however_it_ranks(simulate, shop):
    split = split_sessions(simulate(300), 0.5)
    judged = judge(split.test, OPTIONS, shop.titles)
    random = np.random.default_rng(0)

    def healthy(contents):
        return random.standard_normal((len(contents), 16))

    before = embed_sessions(judged, shop.titles, healthy, healthy)
    after = embed_sessions(judged, shop.titles, healthy, lambda items: np.ones((len(items), 16)))
    assert judge_model(judged, before, after).refusal.startswith('the model has collapsed: the mean cosine')
