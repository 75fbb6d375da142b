"""Every argument of fit does something: the weights, or what else it is about, differ from those without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import training
from finetuner.callback import EarlyStopping
from finetuner.excepts import DataError, ParameterError
from training.lora import merge_adapters
from training.losses import LOSSES

ARGUMENTS = {'epochs': 2, 'batch_size': 24, 'learning_rate': 1e-3, 'device': 'cpu'}


class Run:
    """What came of a training without its export."""

    def __init__(self, result, task):
        self.result, self.task = result, task
        merge_adapters(task.encoders['model'])
        self.weights = {name: tensor.clone() for name, tensor in task.encoders['model'].state_dict().items()}

    def apart(self, other: Run) -> float:
        same = self.weights.keys() & other.weights.keys()
        return max((self.weights[name].float() - other.weights[name].float()).abs().max().item() for name in same)


@pytest.fixture(scope='module')
def fit(word_model, train_csv, tmp_path_factory):
    """Trains; building the artifact, which takes longer, is tested elsewhere."""
    patch = pytest.MonkeyPatch()
    seen = {}

    def keep_task(task):
        seen['task'] = task
        return dict(task.by_name)

    def no_artifact(encoders, *, target, **_):
        target.write_bytes(b'')
        return target

    patch.setattr('training.pipeline.for_export', keep_task)
    patch.setattr('training.pipeline.build_artifact', no_artifact)

    def run(train_data=train_csv, model=word_model, **arguments):
        directory = tmp_path_factory.mktemp('run')
        result = training.fit(str(model), train_data, directory=directory, **ARGUMENTS | arguments)
        return Run(result, seen['task'])

    yield run
    patch.undo()


@pytest.fixture(scope='module')
def plain(fit):
    return fit()


def test_the_same_arguments_give_the_same_weights(fit, plain):
    assert fit().apart(plain) == 0


@pytest.mark.parametrize(
    'arguments',
    [
        {'epochs': 3},
        {'batch_size': 12},
        {'learning_rate': 2e-3},
        {'num_items_per_class': 8},
        {'sampler': 'random'},
        {'seed': 1},
        {'max_length': 6},
        {'precision': 'bf16'},
        {'gradient_accumulation_steps': 2},
        {'max_grad_norm': 1e-3, 'optimizer': 'SGD'},
        {'loss_options': {'margin': 0.5}},
        {'loss_options': {'distance': 'CosineSimilarity'}},
        {'miner': 'BatchHardMiner'},
        {'model_options': {'pooling': 'cls'}},
        {'model_options': {'pooling': 'max'}},
        {'model_options': {'pooling': 'lasttoken'}},
        {'model_options': {'pooler': 'GeM', 'pooler_options': {'p': 4}}},
        {'val_split': 0.25},
        {'freeze': 1},
        {'lora': True},
        {'optimizer_options': {'layer_wise_lr_decay': 0.5}},
        {'optimizer_options': {'betas': [0.5, 0.9]}},
        {'optimizer': 'LBFGS'},
        *({'optimizer': name} for name in (
            'Adadelta', 'Adagrad', 'AdamW', 'SparseAdam', 'Adamax', 'ASGD', 'NAdam', 'RAdam', 'RMSprop', 'Rprop', 'SGD',
        )),
        *({'scheduler': name} for name in ('linear', 'cosine', 'cosine_with_restarts', 'polynomial')),
        {'scheduler': 'constant_with_warmup', 'scheduler_options': {'num_warmup_steps': 4}},
    ],
    ids=str,
)  # fmt: skip
def test_the_option_makes_other_weights(fit, plain, arguments):
    assert fit(**arguments).apart(plain) > 1e-6


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ({'miner': 'TripletMarginMiner'}, {'miner_options': {'margin': 0.0}}),
        ({'scheduler': 'linear'}, {'scheduler_options': {'num_warmup_steps': 3}}),
        ({'scheduler': 'linear'}, {'scheduler_options': {'num_training_steps': 40}}),
        ({'scheduler': 'linear'}, {'scheduler_options': {'scheduler_step': 'epoch'}}),
        ({'loss': 'ArcFaceLoss'}, {'loss_optimizer': 'SGD'}),
        ({'loss': 'ArcFaceLoss'}, {'loss_optimizer_options': {'lr': 0.5}}),
        ({'lora': True}, {'lora': {'r': 2}}),
        ({'freeze': 1}, {'freeze': 2}),
        ({'model_options': {'pooler': 'GeM'}}, {'model_options': {'pooler': 'GeM', 'pooler_options': {'p': 9}}}),
    ],
    ids=str,
)
def test_the_option_of_an_option_makes_other_weights(fit, one, other):
    assert fit(**one | other).apart(fit(**one)) > 1e-6


def test_a_constant_schedule_is_none(fit, plain):
    assert fit(scheduler='constant').apart(plain) == 0


def test_output_dim_adds_a_head(fit):
    encoder = fit(output_dim=7).task.encoders['model']
    assert encoder.dim == 7
    assert len(encoder.head) == 3


@pytest.mark.parametrize('layers', [1, 2, True])
def test_frozen_weights_stay_bit_by_bit(fit, encoder, layers):
    tuned = fit(freeze=layers, output_dim=8)
    groups = encoder.layer_groups()
    frozen = groups if layers is True else groups[:layers]
    for before, after in zip(frozen, tuned.task.encoders['model'].layer_groups(), strict=False):
        for one, two in zip(before.state_dict().values(), after.state_dict().values(), strict=True):
            assert torch.equal(one, two)
    if layers is not True:
        assert tuned.apart(fit(epochs=1, output_dim=8)) > 0


def test_an_epoch_of_a_frozen_backbone_costs_the_head_alone(fit, monkeypatch):
    from finetuner.inference.text_encoder import TextEncoder

    calls = []
    original = TextEncoder.packed

    def counted(self, tokens, lengths):
        calls.append(len(lengths))
        return original(self, tokens, lengths)

    monkeypatch.setattr(TextEncoder, 'packed', counted)
    fit(freeze=True, output_dim=5, epochs=1, seed=5)
    one = len(calls)
    calls.clear()
    fit(freeze=True, output_dim=5, epochs=4, seed=6)
    assert len(calls) <= one, 'the features are there already'


def test_gradient_cache_changes_memory_and_not_the_result(fit, plain):
    """With dropout, which draws other numbers for other chunks, weights differ: losses stay near."""
    chunked = fit(gradient_cache=True)
    assert chunked.result.history[-1]['train_loss'] == pytest.approx(plain.result.history[-1]['train_loss'], abs=0.03)


def test_eval_data_and_val_split_give_a_val_loss(fit, plain, test_csv):
    assert 'val_loss' not in plain.result.history[-1]
    assert fit(eval_data=test_csv).result.history[-1]['val_loss'] > 0
    assert fit(val_split=0.3).result.history[-1]['val_loss'] > 0


def test_the_loss_of_the_training_data_is_the_same_whether_computed_by_the_loop_or_as_val_loss(fit, train_csv):
    run = fit(eval_data=train_csv, epochs=1, learning_rate=1e-12, loss='ArcFaceLoss', batch_size=120)
    history = run.result.history[-1]
    assert history['val_loss'] == pytest.approx(history['train_loss'], rel=0.05)  # but for dropout


def test_class_weights_of_groups_have_no_val_loss(fit, shaped):
    arguments = {'loss': 'ArcFaceLoss', 'eval_data': shaped['pairs'], 'epochs': 1}
    assert 'val_loss' not in fit(shaped['pairs'], **arguments).result.history[-1]
    with pytest.raises(ValueError, match='EarlyStopping watches val_loss, and there is none'):
        fit(shaped['pairs'], callbacks=[EarlyStopping()], **arguments)


@pytest.mark.parametrize('loss', ['TripletMarginLoss', 'MultipleNegativeRankingLoss'])
def test_scored_pairs_are_not_taken_for_positives(fit, shaped, loss):
    with pytest.raises(DataError, match='holds scored pairs of texts: use CosineSimilarityLoss'):
        fit(shaped['scored'], loss=loss)


def test_time_limit_ends_the_training_early(fit):
    run = fit(epochs=500, time_limit=2.0)
    assert 1 <= len(run.result.history) < 500


def test_batch_size_is_found_where_none_is_given(fit, caplog):
    with caplog.at_level('INFO', 'training'):
        fit(batch_size=None)
    assert 'Batch size 8' in caplog.text  # 120 examples in 16 batches or so


def test_a_loss_that_needs_other_data_is_refused(fit):
    with pytest.raises(DataError, match='CosineSimilarityLoss learns from'):
        fit(loss='CosineSimilarityLoss')


@pytest.mark.parametrize('loss', [name for name in LOSSES if name in (
    'ArcFaceLoss', 'CircleLoss', 'ContrastiveLoss', 'MultiSimilarityLoss', 'NTXentLoss', 'ProxyAnchorLoss',
    'SoftTripleLoss', 'SupConLoss', 'CentroidTripletLoss',
)])  # fmt: skip
def test_the_loss_falls(fit, loss):
    history = fit(loss=loss, epochs=6, learning_rate=2e-3).result.history
    assert history[-1]['train_loss'] < history[0]['train_loss']


def rows(path, lines):
    path.write_text('\n'.join(lines) + '\n')
    return path


@pytest.fixture(scope='module')
def shaped(train_csv, tmp_path_factory):
    """Files of pairs, scored pairs and triplets, made of the labelled texts."""
    folder = tmp_path_factory.mktemp('shaped')
    labelled = [line.rsplit(',', 1) for line in train_csv.read_text().splitlines()[1:]]
    random = np.random.default_rng(0)

    def other(label, same):
        chosen = [text for text, found in labelled if (found == label) == same]
        return chosen[random.integers(len(chosen))]

    pairs = [f'{text},{other(label, True)}' for text, label in labelled[:60]]
    alike = [n % 2 == 0 for n in range(len(labelled))]
    scored = [f'{text},{other(label, same)},{same:d}' for (text, label), same in zip(labelled, alike, strict=True)]
    triplets = [f'{text},{other(label, True)},{other(label, False)},1.0' for text, label in labelled[:60]]
    return {
        'pairs': rows(folder / 'pairs.csv', ['anchor,positive', *pairs]),
        'scored': rows(folder / 'scored.csv', ['one,two,score', *scored]),
        'triplets': rows(folder / 'triplets.csv', ['query,positive,negative,margin', *triplets]),
    }


@pytest.mark.parametrize(
    ('shape', 'arguments'),
    [
        ('pairs', {'loss': 'MultipleNegativeRankingLoss'}),
        ('pairs', {'loss': 'MultipleNegativeRankingLoss', 'loss_options': {'symmetric': True}}),
        ('pairs', {'loss': 'SigLIPLoss'}),
        ('pairs', {'loss': 'TripletMarginLoss'}),
        ('pairs', {'loss': 'SelfSupervisedLoss', 'loss_options': {'loss': 'NTXentLoss'}}),
        ('scored', {'loss': 'CosineSimilarityLoss'}),
        ('triplets', {'loss': 'MarginMSELoss'}),
        ('triplets', {'loss': 'CosineProbMarginRankingLoss', 'loss_options': {'margin': 0.1}}),
        ('triplets', {'loss': 'MatryoshkaLoss', 'loss_options': {'loss': 'MarginMSELoss', 'dims': [32, 8]}}),
    ],
    ids=str,
)
def test_every_shape_of_data_is_learned_from(fit, shaped, shape, arguments):
    run = fit(shaped[shape], epochs=6, learning_rate=2e-3, **arguments)
    assert run.result.history[-1]['train_loss'] < run.result.history[0]['train_loss']


def test_hundreds_of_pairs_train_as_one_batch(fit, shaped):
    """More than fits at once: the gradient cache makes one contrastive batch of them."""
    arguments = {'loss': 'MultipleNegativeRankingLoss', 'batch_size': 60, 'epochs': 1}
    assert fit(shaped['pairs'], gradient_cache=True, **arguments).result.samples == 60


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'freeze': 99}, 'freeze is 99, but the model has'),
        ({'freeze': True}, 'leaves nothing to train'),
        ({'lora': {'target_modules': ['nothing']}}, 'target_modules'),
        ({'max_length': 1000}, 'max_length is 1000'),
        ({'model_options': {'pooling': 'best'}}, 'pooling'),
        ({'model_options': {'heads': 3}}, 'heads'),
        ({'val_split': 0.001}, 'leaves nothing on one side'),
    ],
    ids=str,
)
def test_what_does_not_fit_the_model_or_the_data_is_refused(fit, arguments, sentence):
    with pytest.raises((ParameterError, DataError, ValueError), match=sentence):
        fit(**arguments)
