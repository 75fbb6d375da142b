"""The forms over B × B matrices against those of pytorch-metric-learning, value and gradient."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.training.losses.conftest import normal
from training.losses.matrix import FORMS, PairMasks, pairs
from training.losses.matrix.signal_to_noise import SNRDistance

# of the largest number, in parts of it; the library's HistogramLoss finds the bins in float32
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}
COARSE = {'HistogramLoss': 1e-5}

OPTIONS: dict[str, list[dict]] = {
    'AngularLoss': [{'alpha': 20}],
    'CircleLoss': [{'m': 0.2, 'gamma': 10}],
    'ContrastiveLoss': [
        {'pos_margin': 0.5, 'neg_margin': 1.5},
        {'distance': distances.CosineSimilarity(), 'pos_margin': 1, 'neg_margin': 0},
        {'reducer': reducers.MeanReducer()},
        {'reducer': reducers.SumReducer()},
        {'reducer': reducers.PerAnchorReducer()},
        {'reducer': reducers.ThresholdReducer(low=0.2, high=1.2)},
    ],
    'HistogramLoss': [{'n_bins': 7}, {'delta': 0.03}],
    'LiftedStructureLoss': [
        {'neg_margin': 2, 'pos_margin': 0.5},
        {'distance': distances.CosineSimilarity()},
    ],
    'MarginLoss': [
        {'learn_beta': True, 'nu': 0.3},
        {'learn_beta': True, 'nu': 0.3, 'num_classes': 40},
        {'reducer': reducers.MeanReducer()},
        {'distance': distances.CosineSimilarity(), 'beta': 0.3},
    ],
    'NTXentLoss': [
        {'temperature': 0.005},
        {'distance': distances.LpDistance()},
        {'reducer': reducers.AvgNonZeroReducer()},
        {'reducer': reducers.PerAnchorReducer()},
    ],
    'PNPLoss': [{'variant': variant, 'b': 3, 'alpha': 2} for variant in ('Ds', 'Dq', 'Iu', 'Ib')],
    'SupConLoss': [{'distance': distances.LpDistance()}, {'reducer': reducers.MeanReducer()}],
    'TripletMarginLoss': [
        {'margin': 0.0},
        {'swap': True},
        {'smooth_loss': True},
        {'swap': True, 'smooth_loss': True},
        {'distance': distances.CosineSimilarity(), 'margin': 0.4},
        {'distance': distances.CosineSimilarity(), 'swap': True},
        {'distance': distances.LpDistance(power=2)},
        {'reducer': reducers.MeanReducer()},
        {'reducer': reducers.SumReducer()},
        {'reducer': reducers.ThresholdReducer(low=0.3)},
    ],
    'TupletMarginLoss': [{'margin': 20, 'scale': 8}],
}
CASES = [(name, options) for name in FORMS if name != 'SmoothAPLoss' for options in [{}, *OPTIONS.get(name, [])]]


def labels(kind: str) -> Tensor:
    return {
        'uneven': torch.randint(0, 6, (40,), generator=torch.Generator().manual_seed(1)),
        'large': torch.arange(40) % 2,
        'no positives': torch.arange(20),
        'one class': torch.zeros(20, dtype=torch.int64),
        'one pair': torch.arange(20).clamp(min=1),
        'one item': torch.zeros(1, dtype=torch.int64),
    }[kind]


def outcome(
    cls: type, options: dict, embeddings: Tensor, of: Tensor, mined: tuple[Tensor, ...] | None = None
) -> list[Tensor]:
    """The value and the gradients, those of the loss's own weights included."""
    loss, embeddings = cls(**options), embeddings.clone().requires_grad_()
    value = loss(embeddings, of, mined)
    value.sum().backward()
    assert embeddings.grad is not None
    weights = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in loss.parameters()]
    return [value.detach(), embeddings.grad, *weights]


def assert_equal(ours: list[Tensor], library: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(library)
    for one, two in zip(ours, library, strict=True):
        assert torch.isfinite(one).all()
        largest = max(1, float(two.abs().max()))
        allowed = largest * max(tolerance, TOLERANCE[torch.float32] * (two.dtype == torch.float32))
        torch.testing.assert_close(one.reshape(two.shape), two, rtol=0, atol=allowed, check_dtype=False)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('kind', ['uneven', 'large', 'no positives', 'one class', 'one pair', 'one item'])
@pytest.mark.parametrize(('name', 'options'), CASES)
@pytest.mark.filterwarnings('ignore:Using a non-tuple sequence')
def test_value_and_gradient_are_the_librarys(name, options, kind, dtype):
    of = labels(kind)
    embeddings = normal(len(of), 16, dtype=dtype)
    tolerance = max(TOLERANCE[dtype], COARSE.get(name, 0))
    ours, library = (outcome(cls, options, embeddings, of) for cls in (FORMS[name], getattr(losses, name)))
    if name == 'MarginLoss' and not options.get('learn_beta') and options.get('reducer'):
        assert FORMS[name](**options).has_matrix_form(False) is False
    assert_equal(ours, library, tolerance)


@pytest.mark.parametrize('name', ['AngularLoss', 'PNPLoss', 'TripletMarginLoss'])
def test_pieces_give_the_same(name, monkeypatch):
    of, embeddings = labels('large'), normal(40, 16, dtype=torch.float64)
    whole = outcome(FORMS[name], {}, embeddings, of)
    monkeypatch.setattr(pairs, 'CHUNK', 7 * 40)
    monkeypatch.setattr('training.losses.matrix.triplet_margin.CHUNK', 7 * 40)
    assert_equal(outcome(FORMS[name], {}, embeddings, of), whole, 1e-12)


def test_smooth_ap_is_the_librarys_where_that_finds_the_positives():
    embeddings, of = normal(16, 8, dtype=torch.float64), torch.arange(16) // 4
    ours, library = (outcome(cls, {}, embeddings, of) for cls in (FORMS['SmoothAPLoss'], losses.SmoothAPLoss))
    assert_equal(ours, library, 1e-7)  # the library adds up in float32


def test_smooth_ap_by_hand_for_uneven_classes_in_any_order():
    embeddings, of, temperature = normal(7, 4, dtype=torch.float64), [0, 1, 0, 2, 1, 0, 0], 0.1
    unit = torch.nn.functional.normalize(embeddings)
    total = 0.0
    for i in range(7):
        positives = [j for j in range(7) if of[j] == of[i]]

        def rank(j: int, others: list[int], i: int = i) -> float:
            nearer = [float(torch.sigmoid(unit[i] @ (unit[k] - unit[j]) / temperature)) for k in others if k != j]
            return 1 + sum(nearer)

        total += 1 - sum(rank(j, positives) / rank(j, list(range(7))) for j in positives) / len(positives)
    value = FORMS['SmoothAPLoss'](temperature=temperature)(embeddings, torch.tensor(of))
    assert float(value) == pytest.approx(total / 7, rel=1e-9)


@pytest.mark.parametrize('name', ['HistogramLoss', 'TupletMarginLoss'])
def test_equal_items_are_borne(name):
    """The library gives an error, and NaN."""
    embeddings, of = normal(12, 16), torch.arange(12) % 3
    embeddings[3] = embeddings[0]
    embeddings[1] = embeddings[4] * 1.7
    value, gradient = outcome(FORMS[name], {}, embeddings, of)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()


@pytest.mark.parametrize('name', [name for name in FORMS if name not in ('PNPLoss', 'SmoothAPLoss')])
@pytest.mark.filterwarnings('ignore:Using a non-tuple sequence')
def test_mined_triplets_go_the_librarys_way(name):
    of, embeddings = labels('uneven'), normal(40, 16, dtype=torch.float64)
    mined = (torch.tensor([0, 3, 5]), torch.tensor([0, 0, 0]), torch.tensor([1, 2, 7]))
    mined = (mined[0], torch.stack([(of == of[a]).nonzero().flatten()[-1] for a in mined[0]]), mined[2])
    keep = of[mined[0]] != of[mined[2]]
    mined = tuple(indices[keep] for indices in mined)
    values = [cls()(embeddings, of, mined) for cls in (FORMS[name], getattr(losses, name))]
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-7)


MINED = {'hard': 'MultiSimilarityMiner', 'margin': 'PairMarginMiner', 'easy': 'BatchEasyHardMiner'}


def mined_pairs(kind: str, embeddings: Tensor, of: Tensor) -> tuple[Tensor, ...]:
    if kind in MINED:
        return getattr(miners, MINED[kind])()(embeddings, of)
    generator = torch.Generator().manual_seed(3)
    masks = PairMasks.of(of, of)
    if kind == 'twice':
        return tuple(torch.cat([rows, rows[:9]]) for rows in masks.indices())
    if kind == 'no negatives':
        return *masks.indices()[:2], *(rows[:0] for rows in masks.indices()[2:])
    if kind == 'one of each':
        return tuple(rows[:1] for rows in masks.indices())
    share = 0.3 if kind == 'some' else 0.01
    chosen = [
        mask & (torch.rand(mask.shape, generator=generator) < share) for mask in (masks.positives, masks.negatives)
    ]
    chosen[1][::4] = False  # anchors with positives alone
    return PairMasks(*chosen).indices()


@pytest.mark.parametrize('kind', [*MINED, 'some', 'few', 'twice', 'no negatives', 'one of each'])
@pytest.mark.parametrize(('name', 'options'), [case for case in CASES if case[0] != 'PNPLoss'])  # it takes no miner
@pytest.mark.filterwarnings('ignore:Using a non-tuple sequence')
def test_mined_pairs_give_the_librarys_value_and_gradient(name, options, kind):
    of, embeddings = labels('uneven'), normal(40, 16, dtype=torch.float64)
    mined = mined_pairs(kind, embeddings, of)
    ours, library = (outcome(cls, options, embeddings, of, mined) for cls in (FORMS[name], getattr(losses, name)))
    assert_equal(ours, library, max(TOLERANCE[torch.float64], COARSE.get(name, 0)))


# ThresholdConsistentMarginLoss stays with the library there, whose own form has B × B × D
OTHERS = ('PNPLoss', 'SmoothAPLoss', 'ThresholdConsistentMarginLoss')


@pytest.mark.parametrize('name', [name for name in FORMS if name not in OTHERS])
def test_memory_with_mined_pairs_grows_with_pairs_alone(name, monkeypatch):
    embeddings, of = normal(160, 8).requires_grad_(), torch.arange(160) // 16
    mined, largest = mined_pairs('some', embeddings, of), 0

    class Note(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            largest = max(largest, result.numel() if isinstance(result, Tensor) else 0)
            return result

    monkeypatch.setattr(pairs, 'CHUNK', 160 * 160)
    monkeypatch.setattr('training.losses.matrix.triplet_margin.CHUNK', 160 * 160)
    options = {'triplets_per_anchor': 'all'} if name in ('MarginLoss', 'TripletMarginLoss') else {}
    with Note():
        FORMS[name](**options)(embeddings, of, mined).backward()
    assert largest <= 160 * 161  # one column more in the library's sums


@pytest.mark.parametrize('name', [name for name in FORMS if name in losses.CrossBatchMemory.supported_losses()])
def test_reference_embeddings(name):
    """All pairs of two sets: as masks, without, and as the library has it."""
    one, two = normal(12, 8, dtype=torch.float64), normal(20, 8, seed=1, dtype=torch.float64)
    of, ref = torch.arange(12) % 4, torch.arange(20) % 5
    masks = PairMasks.of(of, ref)
    expected = getattr(losses, name)()(one, of, None, two, ref)
    for mined in (None, masks, masks.indices()):
        torch.testing.assert_close(FORMS[name]()(one, of, mined, two, ref), expected, rtol=1e-9, atol=1e-12)


def test_signal_to_noise_distance_is_the_librarys():
    one, two = normal(9, 8, dtype=torch.float64), normal(5, 8, seed=1, dtype=torch.float64)
    torch.testing.assert_close(SNRDistance()(one, two), distances.SNRDistance()(one, two), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', FORMS)
def test_memory_grows_with_pairs_alone(name):
    """Nothing of B² × B or P × N elements is made: the largest tensor that is kept for the gradient."""
    size, largest = 160, 0
    embeddings, of = normal(size, 8).requires_grad_(), torch.arange(size) // 16

    def note(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, 'CHUNK', size * size)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            FORMS[name]()(embeddings, of).backward()
    assert largest <= size * (size + 1)  # one column more in the library's sums
