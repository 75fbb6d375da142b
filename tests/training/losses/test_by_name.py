from __future__ import annotations

import pytest
import torch

from tests.training.losses.conftest import NEEDED, batch, differ, outcome
from training.losses import (
    LOSSES,
    MINERS,
    check_objective,
    has_class_weights,
    library,
    make_objective,
    needs_positives,
    objective_shape,
)
from training.losses.options import FROM_DATA, arguments

SIZES = {'num_classes': 3, 'embedding_size': 8}
WITH_CLASSES = {
    'ArcFaceLoss', 'CosFaceLoss', 'LargeMarginSoftmaxLoss', 'ManifoldLoss', 'NormalizedSoftmaxLoss', 'P2SGradLoss',
    'ProxyAnchorLoss', 'ProxyNCALoss', 'SoftTripleLoss', 'SphereFaceLoss', 'SubCenterArcFaceLoss',
}  # fmt: skip

# for every option of every loss: another value, and what must be set beside it
OTHER = {
    ('AngularLoss', 'alpha'): (20, {}),
    ('ArcFaceLoss', 'margin'): (10, {}),
    ('ArcFaceLoss', 'scale'): (30, {}),
    ('CentroidTripletLoss', 'margin'): (0.5, {}),
    ('CentroidTripletLoss', 'smooth_loss'): (True, {}),
    ('CircleLoss', 'gamma'): (20, {}),
    ('CircleLoss', 'm'): (0.2, {}),
    ('ContrastiveLoss', 'neg_margin'): (2, {}),
    ('ContrastiveLoss', 'pos_margin'): (0.5, {}),
    ('CosFaceLoss', 'margin'): (0.1, {}),
    ('CosFaceLoss', 'scale'): (30, {}),
    ('CosineProbMarginRankingLoss', 'fine_small_difference'): (True, {'margin': 1.0}),
    ('CosineProbMarginRankingLoss', 'margin'): (0.5, {}),
    ('CosineProbMarginRankingLoss', 'max_difference'): (0.5, {}),
    ('CosineProbMarginRankingLoss', 'min_difference'): (0.3, {}),
    ('CosineProbMarginRankingLoss', 'similarity'): ('euclidean', {}),
    ('CrossBatchMemory', 'loss'): ('TripletMarginLoss', {}),
    ('CrossBatchMemory', 'loss_options'): ({'temperature': 0.5}, {}),
    ('DynamicSoftMarginLoss', 'min_val'): (-3.0, {}),
    ('DynamicSoftMarginLoss', 'num_bins'): (5, {}),
    ('FastAPLoss', 'num_bins'): (5, {}),
    ('GeneralizedLiftedStructureLoss', 'neg_margin'): (2, {}),
    ('GeneralizedLiftedStructureLoss', 'pos_margin'): (0.5, {}),
    ('HistogramLoss', 'delta'): (0.1, {}),
    ('HistogramLoss', 'n_bins'): (10, {}),
    ('InstanceLoss', 'gamma'): (10, {}),
    ('IntraPairVarianceLoss', 'neg_eps'): (0.2, {}),
    ('IntraPairVarianceLoss', 'pos_eps'): (0.2, {}),
    ('LargeMarginSoftmaxLoss', 'margin'): (2, {}),
    ('LargeMarginSoftmaxLoss', 'scale'): (4, {}),
    ('LiftedStructureLoss', 'neg_margin'): (2, {}),
    ('LiftedStructureLoss', 'pos_margin'): (0.5, {}),
    ('ManifoldLoss', 'K'): (5, {}),
    ('ManifoldLoss', 'alpha'): (0.3, {}),
    ('ManifoldLoss', 'lambdaC'): (0.0, {}),
    ('ManifoldLoss', 'margin'): (0.5, {}),
    ('MarginLoss', 'beta'): (0.5, {}),
    ('MarginLoss', 'learn_beta'): (True, {'nu': 1.0}),
    ('MarginLoss', 'margin'): (0.5, {}),
    ('MarginLoss', 'nu'): (0.5, {'learn_beta': True}),
    ('MarginLoss', 'triplets_per_anchor'): (1, {}),
    ('MarginMSELoss', 'similarity'): ('cosine', {}),
    ('MatryoshkaLoss', 'dims'): ([2, 8], {}),
    ('MatryoshkaLoss', 'loss'): ('ContrastiveLoss', {}),
    ('MatryoshkaLoss', 'loss_options'): ({'margin': 0.5}, {}),
    ('MatryoshkaLoss', 'weights'): ([1, 0.1], {}),
    ('MultiSimilarityLoss', 'alpha'): (4, {}),
    ('MultiSimilarityLoss', 'base'): (0.1, {}),
    ('MultiSimilarityLoss', 'beta'): (10, {}),
    ('MultipleLosses', 'losses'): (['TripletMarginLoss', {'loss': 'NTXentLoss', 'miner': 'BatchHardMiner'}], {}),
    ('MultipleLosses', 'weights'): ([1, 0.1], {}),
    ('MultipleNegativeRankingLoss', 'scale'): (5, {}),
    ('MultipleNegativeRankingLoss', 'similarity'): ('dot', {}),
    ('MultipleNegativeRankingLoss', 'symmetric'): (True, {}),
    ('MultipleNegativeRankingLoss', 'temperature'): (0.5, {}),
    ('NCALoss', 'softmax_scale'): (5, {}),
    ('NTXentLoss', 'temperature'): (0.5, {}),
    ('NormalizedSoftmaxLoss', 'temperature'): (0.5, {}),
    ('PNPLoss', 'alpha'): (4, {'variant': 'Dq'}),
    ('PNPLoss', 'anneal'): (0.5, {}),
    ('PNPLoss', 'b'): (4, {'variant': 'Ib'}),
    ('PNPLoss', 'variant'): ('Ds', {}),
    ('ProbMarginRankingLoss', 'fine_small_difference'): (True, {}),
    ('ProbMarginRankingLoss', 'margin'): (0.5, {}),
    ('ProbMarginRankingLoss', 'max_difference'): (0.5, {}),
    ('ProbMarginRankingLoss', 'min_difference'): (0.3, {}),
    ('ProbMarginRankingLoss', 'similarity'): ('euclidean', {}),
    ('ProxyAnchorLoss', 'alpha'): (10, {}),
    ('ProxyAnchorLoss', 'margin'): (0.5, {}),
    ('ProxyNCALoss', 'softmax_scale'): (5, {}),
    ('RankedListLoss', 'Tn'): (3, {}),
    ('RankedListLoss', 'Tp'): (2, {}),
    ('RankedListLoss', 'alpha'): (1.5, {}),
    ('RankedListLoss', 'imbalance'): (0.1, {}),
    ('RankedListLoss', 'margin'): (0.8, {}),
    ('SelfSupervisedLoss', 'loss'): ('TripletMarginLoss', {}),
    ('SelfSupervisedLoss', 'loss_options'): ({'temperature': 0.5}, {}),
    ('SelfSupervisedLoss', 'symmetric'): (False, {}),
    ('SigLIPLoss', 'bias'): (0.0, {}),
    ('SigLIPLoss', 'scale'): (1.0, {}),
    ('SignalToNoiseRatioContrastiveLoss', 'neg_margin'): (3, {}),
    ('SignalToNoiseRatioContrastiveLoss', 'pos_margin'): (0.5, {}),
    ('SmoothAPLoss', 'temperature'): (0.5, {}),
    ('SoftTripleLoss', 'centers_per_class'): (2, {}),
    ('SoftTripleLoss', 'gamma'): (1, {}),
    ('SoftTripleLoss', 'la'): (5, {}),
    ('SoftTripleLoss', 'margin'): (0.5, {}),
    ('SphereFaceLoss', 'margin'): (2, {}),
    ('SphereFaceLoss', 'scale'): (4, {}),
    ('SubCenterArcFaceLoss', 'margin'): (10, {}),
    ('SubCenterArcFaceLoss', 'scale'): (30, {}),
    ('SubCenterArcFaceLoss', 'sub_centers'): (1, {}),
    ('SupConLoss', 'temperature'): (0.5, {}),
    ('ThresholdConsistentMarginLoss', 'lambda_minus'): (3, {}),
    ('ThresholdConsistentMarginLoss', 'lambda_plus'): (3, {}),
    ('ThresholdConsistentMarginLoss', 'margin_minus'): (0.1, {}),
    ('ThresholdConsistentMarginLoss', 'margin_plus'): (0.3, {}),
    ('TripletMarginLoss', 'margin'): (0.5, {}),
    ('TripletMarginLoss', 'smooth_loss'): (True, {}),
    ('TripletMarginLoss', 'swap'): (True, {}),
    ('TripletMarginLoss', 'triplets_per_anchor'): (1, {}),
    ('TupletMarginLoss', 'margin'): (20, {}),
    ('TupletMarginLoss', 'scale'): (10, {}),
    ('VICRegLoss', 'covariance_v'): (10, {}),
    ('VICRegLoss', 'eps'): (0.1, {'variance_mu': 100}),
    ('VICRegLoss', 'invariance_lambda'): (1, {}),
    ('VICRegLoss', 'reducer'): ('SumReducer', {}),
    ('VICRegLoss', 'variance_mu'): (100, {}),
    ('CLIPLoss', 'temperature'): (0.5, {}),
    ('CLIPLoss', 'max_scale'): (5.0, {}),
}
# options with tests of their own: they show in a second batch, or are shared by many losses
ELSEWHERE = {'momentum', 'memory_size', *library.PARTS, 'embedding_reg_weight', 'weight_reg_weight'}

MINER_OPTIONS = {
    ('AngularMiner', 'angle'): (80, {}),
    ('BatchEasyHardMiner', 'allowed_neg_range'): ([1.5, 2.0], {'neg_strategy': 'hard'}),
    ('BatchEasyHardMiner', 'allowed_pos_range'): ([0.0, 1.2], {}),
    ('BatchEasyHardMiner', 'neg_strategy'): ('hard', {}),
    ('BatchEasyHardMiner', 'pos_strategy'): ('hard', {}),
    ('DistanceWeightedMiner', 'cutoff'): (1.3, {}),
    ('DistanceWeightedMiner', 'nonzero_loss_cutoff'): (0.9, {}),
    ('HDCMiner', 'filter_percentage'): (0.1, {}),
    ('MaximumLossMiner', 'loss'): ('ContrastiveLoss', {'num_trials': 20}),
    ('MaximumLossMiner', 'loss_options'): (
        {'pos_margin': 9, 'neg_margin': 3},
        {'num_trials': 20, 'loss': 'ContrastiveLoss'},
    ),
    ('MaximumLossMiner', 'num_trials'): (50, {}),
    ('MaximumLossMiner', 'output_batch_size'): (4, {}),
    ('MultiSimilarityMiner', 'epsilon'): (-0.5, {}),
    ('PairMarginMiner', 'neg_margin'): (1.3, {}),
    ('PairMarginMiner', 'pos_margin'): (1.3, {}),
    ('TripletMarginMiner', 'margin'): (-0.2, {}),
    ('TripletMarginMiner', 'type_of_triplets'): ('hard', {}),
    ('UniformHistogramMiner', 'neg_per_bin'): (1, {}),
    ('UniformHistogramMiner', 'num_bins'): (3, {}),
    ('UniformHistogramMiner', 'pos_per_bin'): (1, {}),
}


@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_is_made_by_name_and_gives_gradients_batch_after_batch(name):
    options = NEEDED.get(name)
    check_objective(name, options)
    objective = make_objective(name, options, **SIZES)
    assert objective.shape == objective_shape(name, options)
    for _ in range(2):
        columns, labels, scores = batch(objective)
        value = objective(columns, labels, scores)
        value.backward()
        assert value.shape == () and value.dtype == torch.float32
        assert torch.isfinite(value)
        assert all(column.grad.isfinite().all() for column in columns)
        assert any(column.grad.any() for column in columns)


@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_runs_without_gradients_and_without_positives(name):
    objective = make_objective(name, NEEDED.get(name), num_classes=12, embedding_size=8).eval()
    columns, _, scores = batch(objective)
    with torch.no_grad():
        assert torch.isfinite(objective([column.detach() for column in columns], torch.arange(12), scores))


@pytest.mark.parametrize('miner', MINERS)
def test_every_miner_is_made_by_name(miner):
    check_objective('MultiSimilarityLoss', miner=miner)
    objective = make_objective('MultiSimilarityLoss', miner=miner, **SIZES)
    assert objective.shape == objective_shape('MultiSimilarityLoss', None, miner)
    found = outcome(objective, rows=60)
    assert all(tensor.isfinite().all() for tensor in found)
    if objective.shape == 'labelled':
        assert differ(found, outcome(make_objective('MultiSimilarityLoss', **SIZES), rows=60))


@pytest.mark.parametrize('name', LOSSES)
def test_a_miner_is_used_or_refused(name):
    options = dict(NEEDED.get(name, {}))
    options |= {'loss': 'MultiSimilarityLoss'} if name in ('CrossBatchMemory', 'MatryoshkaLoss') else {}
    options |= {'losses': ['MultiSimilarityLoss']} if name == 'MultipleLosses' else {}
    try:
        objective = make_objective(name, options, miner='BatchHardMiner', **SIZES)
    except ValueError as error:
        assert str(error).startswith(f"miner 'BatchHardMiner' cannot be used with {name}")
        assert name in library.WITHOUT_MINER | {'CentroidTripletLoss'} or objective_shape(name, options) != 'labelled'
        return
    torch.manual_seed(0)
    plain = make_objective(name, options, **SIZES)
    plain.load_state_dict(objective.state_dict(), strict=False)
    if name != 'ProxyNCALoss':  # weighs items by how often they are an anchor, here once each
        assert differ(outcome(objective), outcome(plain))


def own_options(cls: type) -> set[str]:
    return arguments(cls).keys() - FROM_DATA - ELSEWHERE


def test_every_option_is_tested():
    from training.losses.factory import SIMPLE

    made = {(name, option) for name, cls in (library.LIBRARY | SIMPLE).items() for option in own_options(cls)}
    tested = OTHER.keys() - {('VICRegLoss', 'reducer')}
    assert {key for key in tested if key[0] not in ('CrossBatchMemory', *NEEDED) or key[0] == 'RankedListLoss'} == made
    mined = {(name, option) for name, cls in library.MINERS.items() for option in own_options(cls)}
    assert MINER_OPTIONS.keys() == {key for key in mined if key[0] != 'BatchHardMiner'}


@pytest.mark.parametrize(('name', 'option'), OTHER)
@pytest.mark.filterwarnings('ignore:Values of Tp or Tn')
def test_every_option_of_a_loss_changes_its_outcome(name, option):
    other, beside = OTHER[name, option]
    options = NEEDED.get(name, {}) | beside
    if option == 'loss':
        options.pop('loss_options', None)
    torch.manual_seed(0)
    before = make_objective(name, options, **SIZES)
    torch.manual_seed(0)
    after = make_objective(name, options | {option: other}, **SIZES)
    check_objective(name, options | {option: other})
    if name == 'SelfSupervisedLoss':
        one, two = batch(before, classes=12), batch(after, classes=12)
        assert before(*one) != after(*two)
        return
    assert differ(outcome(before), outcome(after))


@pytest.mark.parametrize(('name', 'option'), MINER_OPTIONS)
def test_every_option_of_a_miner_changes_the_outcome(name, option):
    other, beside = MINER_OPTIONS[name, option]
    loss = 'MultiSimilarityLoss' if 'Batch' not in name else 'ContrastiveLoss'
    before = make_objective(loss, miner=name, miner_options=beside, **SIZES)
    after = make_objective(loss, miner=name, miner_options=beside | {option: other}, **SIZES)
    assert differ(outcome(before), outcome(after))


@pytest.mark.parametrize('name', LOSSES)
def test_class_weights_are_known_by_name(name):
    assert has_class_weights(name, NEEDED.get(name)) == (name in WITH_CLASSES)
    assert needs_positives(name, NEEDED.get(name)) == (name not in WITH_CLASSES)


def test_class_weights_inside_another_loss():
    both = {'losses': ['ArcFaceLoss', {'loss': 'TripletMarginLoss', 'loss_options': {'margin': 1}}]}
    assert has_class_weights('MultipleLosses', both) and needs_positives('MultipleLosses', both)
    assert not needs_positives('MatryoshkaLoss', {'loss': 'ArcFaceLoss', 'dims': [2]})


@pytest.mark.parametrize(
    ('part', 'one', 'two', 'loss'),
    [
        ('distance', 'LpDistance', 'CosineSimilarity', 'TripletMarginLoss'),
        ('distance', 'LpDistance', {'name': 'LpDistance', 'power': 2}, 'TripletMarginLoss'),
        ('distance', 'DotProductSimilarity', 'SNRDistance', 'ContrastiveLoss'),
        ('reducer', 'MeanReducer', 'AvgNonZeroReducer', 'TripletMarginLoss'),
        ('reducer', 'MeanReducer', 'SumReducer', 'TripletMarginLoss'),
        ('reducer', 'MeanReducer', {'name': 'ThresholdReducer', 'low': 0.5}, 'TripletMarginLoss'),
        ('reducer', 'MeanReducer', 'PerAnchorReducer', 'ContrastiveLoss'),
        ('reducer', 'MeanReducer', {'name': 'ClassWeightedReducer', 'weights': [1, 2, 3]}, 'ContrastiveLoss'),
        ('embedding_regularizer', None, 'LpRegularizer', 'ContrastiveLoss'),
        ('embedding_regularizer', 'LpRegularizer', 'ZeroMeanRegularizer', 'ContrastiveLoss'),
        ('weight_regularizer', None, 'RegularFaceRegularizer', 'ArcFaceLoss'),
    ],
)
def test_parts_of_a_loss_are_given_by_name(part, one, two, loss):
    outcomes = []
    for value in (one, two):
        torch.manual_seed(0)
        check_objective(loss, {part: value}) if part != 'reducer' else None  # noqa: B018
        outcomes.append(outcome(make_objective(loss, {part: value}, **SIZES)))
    assert differ(*outcomes)


@pytest.mark.parametrize(
    ('loss', 'options'),
    [
        ('ContrastiveLoss', {'embedding_regularizer': 'LpRegularizer', 'embedding_reg_weight': 2}),
        ('ArcFaceLoss', {'weight_regularizer': 'RegularFaceRegularizer', 'weight_reg_weight': 2}),
    ],
)
def test_the_weight_of_a_regularizer_counts(loss, options):
    outcomes = []
    for given in (options, dict(list(options.items())[:1])):
        torch.manual_seed(0)
        outcomes.append(outcome(make_objective(loss, given, **SIZES)))
    assert differ(*outcomes)


@pytest.mark.parametrize(
    ('alias', 'name'),
    [
        ('NTXLoss', 'NTXentLoss'),
        ('TripleMarginLoss', 'TripletMarginLoss'),
        ('MultipleNegativesRankingLoss', 'MultipleNegativeRankingLoss'),
    ],
)
def test_misspelt_names_of_the_documentation_are_known(alias, name):
    one, two = make_objective(alias, **SIZES), make_objective(name, **SIZES)
    assert not differ(outcome(one), outcome(two))
    assert objective_shape(alias) == objective_shape(name)
    check_objective('MatryoshkaLoss', {'loss': alias, 'dims': [2]})


@pytest.mark.parametrize(
    ('name', 'options', 'arguments', 'message'),
    [
        ('TripletLoss', {}, {}, "unknown loss 'TripletLoss': did you mean"),
        ('GenericPairLoss', {}, {}, "loss 'GenericPairLoss' cannot be used: it is a base class"),
        ('BaseMetricLossFunction', {}, {}, 'cannot be used: it is a base class'),
        ('WeightRegularizerMixin', {}, {}, "give them the option 'weight_regularizer'"),
        ('TripletMarginLoss', {'magrin': 1}, {}, "loss_options: unknown option of TripletMarginLoss 'magrin': did you"),
        ('TripletMarginLoss', {'margin': 'wide'}, {}, 'loss_options of TripletMarginLoss: '),
        ('TripletMarginLoss', {'distance': 'Cosine'}, {}, "loss_options: unknown distance 'Cosine': did you mean Cos"),
        (
            'TripletMarginLoss',
            {'distance': {'name': 'LpDistance', 'powr': 2}},
            {},
            "distance: unknown option .* 'powr'",
        ),
        ('TripletMarginLoss', {'reducer': 'PerAnchorReducer'}, {}, 'reducer PerAnchorReducer cannot be used with'),
        ('ArcFaceLoss', {'num_classes': 4}, {}, "loss_options: 'num_classes' is filled in from the data"),
        ('ManifoldLoss', {'l': 4}, {}, "loss_options: 'l' is filled in"),
        ('RankedListLoss', {'margin': 1}, {}, 'loss_options: RankedListLoss needs Tn'),
        ('CircleLoss', {'distance': 'LpDistance'}, {}, 'loss_options of CircleLoss: .*CosineSimilarity'),
        ('MultipleNegativeRankingLoss', {'scale': -1}, {}, 'loss_options of MultipleNegativeRankingLoss: scale is -1'),
        ('MultipleNegativeRankingLoss', {'scale': 2, 'temperature': 1}, {}, 'scale and temperature are both given'),
        ('MultipleNegativeRankingLoss', {'symmetric': 'no'}, {}, "symmetric is 'no'"),
        ('MarginMSELoss', {'similarity': 'l2'}, {}, "similarity is 'l2': give 'dot' or 'cosine'"),
        ('CLIPLoss', {'logit_scale': 1}, {}, "'logit_scale' is filled in"),
        ('MatryoshkaLoss', {'dims': [4]}, {}, 'loss_options: MatryoshkaLoss needs loss'),
        (
            'MatryoshkaLoss',
            {'loss': 'ArcFaceLos', 'dims': [4]},
            {},
            "loss_options of MatryoshkaLoss: unknown loss 'Arc",
        ),
        ('MatryoshkaLoss', {'loss': 'ArcFaceLoss', 'dims': [0]}, {}, r'dims is \[0\]'),
        ('MatryoshkaLoss', {'loss': 'ArcFaceLoss', 'dims': [4], 'weights': [1, 2]}, {}, '1 dims and 2 weights'),
        ('MultipleLosses', {'losses': []}, {}, 'loss_options of MultipleLosses: losses is empty'),
        ('MultipleLosses', {'losses': ['CosineSimilarityLoss', 'ArcFaceLoss']}, {}, 'learn from different data'),
        ('MultipleLosses', {'losses': [{'name': 'ArcFaceLoss'}]}, {}, 'is neither a name nor a dict of loss'),
        ('CrossBatchMemory', {'loss': 'ArcFaceLoss'}, {}, 'the loss inside must be one of AngularLoss'),
        ('SelfSupervisedLoss', {'loss': 'ArcFaceLoss'}, {}, 'the loss inside must be one of AngularLoss'),
        ('TripletMarginLoss', {}, {'miner': 'HardMiner'}, "unknown miner 'HardMiner': did you mean"),
        ('TripletMarginLoss', {}, {'miner_options': {'margin': 1}}, 'miner_options are given without a miner'),
        (
            'TripletMarginLoss',
            {},
            {'miner': 'TripletMarginMiner', 'miner_options': {'margn': 1}},
            "miner_options: unknown option of TripletMarginMiner 'margn'",
        ),
        (
            'TripletMarginLoss',
            {},
            {'miner': 'TripletMarginMiner', 'miner_options': {'margin': 'x'}},
            'miner_options of TripletMarginMiner: ',
        ),
        (
            'TripletMarginLoss',
            {},
            {'miner': 'TripletMarginMiner', 'miner_options': {'type_of_triplets': 'nonsense'}},
            "miner_options: type_of_triplets is 'nonsense': give 'all' or 'hard' or 'semihard' or 'easy'",
        ),
        (
            'CrossBatchMemory',
            {'loss': 'TripletMarginLoss', 'memory_size': 10**15},
            {},
            'loss_options: memory_size is 1000000000000000: give at most 1000000',
        ),
        (
            'MultipleLosses',
            {'losses': [{'loss': 'SubCenterArcFaceLoss', 'loss_options': {'sub_centers': 1e18}}]},
            {},
            'sub_centers is 1e.18: give at most 1000000',
        ),
        ('MatryoshkaLoss', {'loss': 'TripletMarginLoss', 'dims': [8, 10**12]}, {}, 'dims is 1000000000000: give'),
        ('CLIPLoss', {}, {'miner': 'BatchHardMiner'}, "miner 'BatchHardMiner' cannot be used with CLIPLoss"),
        ('ArcFaceLoss', {}, {'miner': 'EmbeddingsAlreadyPackagedAsTriplets'}, 'whose classes triplets do not name'),
    ],
)
def test_what_is_wrong_is_named(name, options, arguments, message):
    with pytest.raises(ValueError, match=message):
        check_objective(name, options, **arguments)


def test_dims_are_checked_against_the_model():
    options = {'loss': 'TripletMarginLoss', 'dims': [4, 64]}
    check_objective('MatryoshkaLoss', options)
    make_objective('MatryoshkaLoss', options, num_classes=2, embedding_size=64)
    with pytest.raises(ValueError, match='dims go up to 64, but the embeddings have 32'):
        make_objective('MatryoshkaLoss', options, num_classes=2, embedding_size=32)


def test_a_trial_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check_objective('TripletMarginLoss', {'triplets_per_anchor': 2})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_of_labels_says_that_it_has_none():
    objective = make_objective('TripletMarginLoss', **SIZES)
    with pytest.raises(ValueError, match='learns from labels'):
        objective(batch(objective)[0], None)
