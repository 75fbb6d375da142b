"""Objectives by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from training.losses import library
from training.losses.clip import CLIPLoss
from training.losses.cosine_similarity import CosineSimilarityLoss
from training.losses.cross_batch_memory import CrossBatchMemory
from training.losses.margin_mse import MarginMSELoss
from training.losses.matryoshka import MatryoshkaLoss
from training.losses.metric import MetricObjective, TripletObjective
from training.losses.multiple_losses import MultipleLosses, common_shape
from training.losses.multiple_negative_ranking import MultipleNegativeRankingLoss
from training.losses.objective import Objective, Shape
from training.losses.options import check_options, check_values, construct
from training.losses.prob_margin import CosineProbMarginRankingLoss, ProbMarginRankingLoss
from training.losses.self_supervised import SelfSupervisedLoss
from training.losses.siglip import SigLIPLoss
from training.losses.vicreg import VICRegLoss

Options = Mapping[str, Any]

SIMPLE: dict[str, type[Objective]] = {
    cls.__name__: cls
    for cls in (
        CLIPLoss,
        CosineProbMarginRankingLoss,
        CosineSimilarityLoss,
        MarginMSELoss,
        MultipleNegativeRankingLoss,
        ProbMarginRankingLoss,
        SigLIPLoss,
        VICRegLoss,
    )
}
WRAPPERS = ('CrossBatchMemory', 'MatryoshkaLoss', 'MultipleLosses', 'SelfSupervisedLoss')
LOSSES = tuple(sorted([*library.LIBRARY, *SIMPLE, *WRAPPERS]))
MINERS = tuple(library.MINERS)
# names that Finetuner's documentation, or other libraries, have for them
ALIASES = {
    'MultipleNegativesRankingLoss': 'MultipleNegativeRankingLoss',
    'NTXLoss': 'NTXentLoss',
    'TripleMarginLoss': 'TripletMarginLoss',
}
READY_TRIPLETS = 'EmbeddingsAlreadyPackagedAsTriplets'
# losses whose terms belong to triplets, which PerAnchorReducer does not sum
OF_TRIPLETS = {'MarginLoss', 'TripletMarginLoss'}
SHORTEST_DIM = 32


def make_objective(
    name: str,
    options: Options | None = None,
    *,
    num_classes: int,
    embedding_size: int,
    miner: str | None = None,
    miner_options: Options | None = None,
    logit_scale: float | None = None,
) -> Objective:
    """Build an objective.

    :param name: one of `LOSSES`, or of `ALIASES`.
    :param options: arguments of the loss. Where one is another loss, it goes by `loss` and `loss_options`.
    :param num_classes: of the labels that the loss will see: each is below it.
    :param embedding_size: columns of the embeddings.
    :param miner: one of `MINERS`, for losses of labelled items.
    :param logit_scale: the logarithm of the factor of the similarities, where the model brings one (CLIP).
    :raises ValueError: a name, an option or a value is refused; the message names it.
    """
    return _Maker(num_classes, embedding_size, logit_scale, miner, miner_options).objective(name, options)


def check_objective(
    name: str, options: Options | None = None, *, miner: str | None = None, miner_options: Options | None = None
) -> Objective:
    """Refuse what can be refused before there are data and a model; the objective is fit for nothing but to be looked
    at. Values of a wrong type show when it is run, so it is, on a few numbers.

    :raises ValueError: a name, an option or a value is refused; the message names it.
    """
    check_values('loss_options', options)
    check_values('miner_options', miner_options)
    objective = _Maker(2, None, None, miner, miner_options).objective(name, options)
    size = _embedding_size(objective)
    labels = torch.arange(8) % 2
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        columns = [torch.randn(8, size) for _ in range({'labelled': 1, 'triplets': 3}.get(objective.shape, 2))]
        mine = getattr(objective, 'miner', None)
        trials: list[tuple[str, Callable[[], Any]]] = []
        if isinstance(mine, library.miners.BaseMiner):
            trials.append((f'miner_options of {miner}', lambda: mine(torch.cat(columns), labels.repeat(len(columns)))))
        trials.append((f'loss_options of {name}', lambda: objective.eval()(columns, labels, torch.ones(8))))
        for where, trial in trials:
            try:
                trial()
            except NotImplementedError as error:
                raise ValueError(f'{where}: {error}') from error
            except RuntimeError:  # these numbers may not suit it, and others would
                continue
            except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
                raise ValueError(f'{where}: {error}') from error
    return objective


def objective_shape(name: str, options: Options | None = None, miner: str | None = None) -> Shape:
    """The shape of data that a loss learns from, by its options alone.

    :raises ValueError: the loss is unknown.
    """
    name, options = ALIASES.get(name, name), options or {}
    if name in SIMPLE:
        return SIMPLE[name].shape
    if name == 'SelfSupervisedLoss':
        return SelfSupervisedLoss.shape
    if name == 'MatryoshkaLoss' and 'loss' in options:
        return objective_shape(options['loss'], options.get('loss_options'), miner)
    if name == 'MultipleLosses' and options.get('losses'):
        parts = [_part(part) for part in options['losses']]
        shapes = [objective_shape(part['loss'], part.get('loss_options'), part.get('miner', miner)) for part in parts]
        return common_shape(shapes)
    if name not in LOSSES:
        raise ValueError(library.refusal('loss', name, LOSSES))
    return 'triplets' if miner == READY_TRIPLETS else 'labelled'


def has_class_weights(name: str, options: Options | None = None) -> bool:
    """True if the loss, or one inside it, learns weights of the classes (ArcFaceLoss, ProxyAnchorLoss, ...), so that
    it knows no others."""
    return any(_class_weights(name, options))


def needs_positives(name: str, options: Options | None = None) -> bool:
    """True if the loss, or one inside it, compares the items of a batch, and so needs several of a class in each."""
    return not all(_class_weights(name, options))


def _class_weights(name: str, options: Options | None) -> list[bool]:
    """For every loss that `name` stands for, whether it compares items with weights of the classes."""
    name, options = ALIASES.get(name, name), options or {}
    if name == 'MatryoshkaLoss' and 'loss' in options:
        return _class_weights(options['loss'], options.get('loss_options'))
    if name == 'MultipleLosses' and options.get('losses'):
        parts = [_part(part) for part in options['losses']]
        return [found for part in parts for found in _class_weights(part['loss'], part.get('loss_options'))]
    return [name in library.LIBRARY and library.has_class_weights(name)]


@dataclass(frozen=True)
class _Maker:
    """What all objectives, the inner ones too, are made with. An embedding size of None is not known yet."""

    num_classes: int
    embedding_size: int | None
    logit_scale: float | None
    miner: str | None
    miner_options: Options | None

    def objective(self, name: str, options: Options | None) -> Objective:
        name, options = ALIASES.get(name, name), options or {}
        if name not in LOSSES:
            raise ValueError(library.refusal('loss', name, LOSSES))
        if name in library.LIBRARY:
            return self._metric(name, options)
        if name in SIMPLE:
            self._refuse_miner(name)
            filled = {'logit_scale': self.logit_scale}
            return construct('loss', name, SIMPLE[name], library.with_parts('loss', SIMPLE[name], options), filled)
        makers: dict[str, Callable[..., Objective]] = {
            'CrossBatchMemory': self._cross_batch_memory,
            'MatryoshkaLoss': self._matryoshka,
            'MultipleLosses': self._multiple,
            'SelfSupervisedLoss': self._self_supervised,
        }
        make = makers[name]
        check_options('loss', name, options, inspect.signature(make).parameters)
        try:
            return make(**options)
        except (TypeError, ValueError) as error:
            message = str(error)
            raise ValueError(
                message if message.startswith('miner') else f'loss_options of {name}: {message}'
            ) from error

    def _metric(self, name: str, options: Options) -> Objective:
        loss, miner = self._loss(name, options), self._miner()
        if miner is None:
            return MetricObjective(loss)
        if self.miner == READY_TRIPLETS:
            if library.has_class_weights(name):
                raise ValueError(f'miner {self.miner!r} cannot be used with {name}, whose classes triplets do not name')
            return TripletObjective(loss, self._allowed(name, miner))
        # the one miner that chooses items, not pairs
        return MetricObjective(loss, miner if self.miner == 'MaximumLossMiner' else self._allowed(name, miner))

    def _loss(self, name: str, options: Options | None) -> nn.Module:
        """A loss of pytorch-metric-learning."""
        name, options = ALIASES.get(name, name), options or {}
        reducer = options.get('reducer')
        if name in OF_TRIPLETS and 'PerAnchorReducer' in (
            reducer,
            isinstance(reducer, Mapping) and reducer.get('name'),
        ):
            raise ValueError(f'loss_options: reducer PerAnchorReducer cannot be used with {name}')
        return library.make_loss(name, options, num_classes=self.num_classes, embedding_size=self.embedding_size or 16)

    def _miner(self) -> nn.Module | None:
        return library.make_miner(self.miner, self.miner_options, self._loss)

    def _allowed(self, loss: str, miner: nn.Module) -> nn.Module:
        if loss in library.WITHOUT_MINER | {'CentroidTripletLoss'}:
            raise ValueError(f'miner {self.miner!r} cannot be used with {loss}, which takes no pairs')
        return miner

    def _refuse_miner(self, name: str) -> None:
        if self.miner is not None:
            raise ValueError(f'miner {self.miner!r} cannot be used with {name}, which takes no pairs')
        self._miner()

    def _cross_batch_memory(
        self, loss: str, loss_options: Options | None = None, memory_size: int = 1024
    ) -> CrossBatchMemory:
        if self.miner in (READY_TRIPLETS, 'MaximumLossMiner'):
            raise ValueError(f'miner {self.miner!r} cannot be used with CrossBatchMemory')
        inner, size = self._loss(loss, loss_options), self.embedding_size or 16
        return CrossBatchMemory(inner, size, memory_size, self._miner())

    def _self_supervised(
        self, loss: str, loss_options: Options | None = None, symmetric: bool = True
    ) -> SelfSupervisedLoss:
        self._refuse_miner('SelfSupervisedLoss')
        return SelfSupervisedLoss(self._loss(loss, loss_options), symmetric)

    def _multiple(self, losses: Sequence[str | Options], weights: Sequence[float] | None = None) -> MultipleLosses:
        """`losses` are names, or {'loss', 'loss_options', 'miner', 'miner_options'}; the miner given beside the loss is
        for those without their own."""
        objectives = []
        for part in map(_part, losses):
            maker = self
            if 'miner' in part:
                maker = replace(self, miner=part['miner'], miner_options=part.get('miner_options'))
            objectives.append(maker.objective(part['loss'], part.get('loss_options')))
        return MultipleLosses(objectives, weights)

    def _matryoshka(
        self,
        loss: str,
        loss_options: Options | None = None,
        dims: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> MatryoshkaLoss:
        """`dims` are by default the size of the embeddings, halved as long as at least 32 are left."""
        sizes = list(dims) if dims is not None else _halved(self.embedding_size or 2 * SHORTEST_DIM)
        if not sizes or any(isinstance(dim, bool) or not isinstance(dim, int) or dim < 1 for dim in sizes):
            raise ValueError(f'dims is {dims!r}: give whole numbers above 0')
        if self.embedding_size is not None and max(sizes) > self.embedding_size:
            raise ValueError(f'dims go up to {max(sizes)}, but the embeddings have {self.embedding_size}')
        inner = [replace(self, embedding_size=dim).objective(loss, loss_options) for dim in sizes]
        return MatryoshkaLoss(inner, sizes, weights)


def _part(part: str | Options) -> Options:
    """An entry of the losses of MultipleLosses."""
    if isinstance(part, str):
        return {'loss': part}
    known = {'loss', 'loss_options', 'miner', 'miner_options'}
    if not isinstance(part, Mapping) or 'loss' not in part or part.keys() - known:
        raise ValueError(f'losses: {part!r} is neither a name nor a dict of {", ".join(sorted(known))}')
    return part


def _halved(size: int) -> list[int]:
    sizes = [size]
    while sizes[-1] // 2 >= SHORTEST_DIM:
        sizes.append(sizes[-1] // 2)
    return sizes


def _embedding_size(objective: Objective) -> int:
    """The number of columns that an objective of unknown embedding size was made for."""
    if isinstance(objective, MatryoshkaLoss):
        return max(objective.dims)
    if isinstance(objective, MultipleLosses):
        return max(_embedding_size(part) for part in objective.objectives)  # type: ignore[arg-type]
    return 16
