"""What encoders bring to a loss, and take back from it."""

from __future__ import annotations

import pytest

from training import backbone
from training.backbone import for_export, load_for_training
from training.config import FitConfig
from training.losses import make_objective
from training.pipeline import from_model
from training.task import Task

SIZES = {'num_classes': 2, 'embedding_size': 64}
VALUES = {'scale': 5.0, 'bias': -3.0}


@pytest.mark.parametrize(
    ('loss', 'options'),
    [
        ('SigLIPLoss', {}),
        ('MatryoshkaLoss', {'loss': 'SigLIPLoss'}),
        ('MultipleLosses', {'losses': ['MultipleNegativeRankingLoss', {'loss': 'SigLIPLoss'}]}),
    ],
)
def test_siglip_starts_from_the_model_and_gives_back_what_it_learned(encoder, monkeypatch, loss, options):
    objective = make_objective(loss, from_model(loss, options, VALUES), **SIZES)
    given = {}
    monkeypatch.setattr(backbone, 'set_clip_logit_scale', lambda encoders, scale: given.update(vars(scale)))
    for_export(Task({'clip-text': encoder, 'clip-vision': encoder}, objective))
    assert given == {'logarithm': pytest.approx(1.6094379), 'bias': -3.0}


def test_options_that_are_given_are_kept():
    options = {'loss': 'SigLIPLoss', 'loss_options': {'bias': 1.0}}
    assert from_model('MatryoshkaLoss', options, VALUES)['loss_options'] == {'scale': 5.0, 'bias': 1.0}
    assert from_model('CLIPLoss', {}, VALUES) == {}


@pytest.mark.parametrize('compile', [True, False])
def test_encoders_are_compiled_where_that_is_asked_for(word_model, compile):
    config = FitConfig.from_arguments(model=str(word_model), train_data='t', device='cpu', compile=compile)
    encoders = load_for_training(config)
    assert (encoders['model']._compiled_call_impl is not None) == compile
    task = Task(encoders, make_objective('NTXentLoss', **SIZES))
    assert for_export(task)['model']._compiled_call_impl is None, 'an export is of the model itself'
