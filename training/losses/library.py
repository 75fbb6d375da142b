"""The losses and miners of pytorch-metric-learning by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import nn

from training.losses.centroid_triplet import CentroidTripletLoss
from training.losses.dynamic_soft_margin import DynamicSoftMarginLoss
from training.losses.manifold import ManifoldLoss
from training.losses.matrix import FORMS
from training.losses.matrix.signal_to_noise import SNRDistance
from training.losses.maximum_loss_miner import MaximumLossMiner
from training.losses.nca import NCALoss
from training.losses.options import arguments, construct, unknown_name

# names of the library that are no losses, or miners, of their own
NOT_USABLE = {
    'BaseLossWrapper': 'it is a base class',
    'BaseMetricLossFunction': 'it is a base class',
    'BaseMiner': 'it is a base class',
    'EmbeddingRegularizerMixin': "it is a part of other losses: give them the option 'embedding_regularizer'",
    'GenericPairLoss': 'it is a base class',
    'WeightRegularizerMixin': "it is a part of other losses: give them the option 'weight_regularizer'",
}
# of the library, but objectives of their own here: they take other losses, or no labels
ELSEWHERE = {'VICRegLoss'}
# they take all pairs of the batch
WITHOUT_MINER = {'InstanceLoss', 'ManifoldLoss', 'P2SGradLoss', 'PNPLoss', 'RankedListLoss'}


def _classes(module: Any, base: type[nn.Module]) -> dict[str, type[nn.Module]]:
    found: dict[str, type[nn.Module]] = dict(inspect.getmembers(module, inspect.isclass))
    left_out = NOT_USABLE.keys() | ELSEWHERE | {base.__name__}
    return {name: value for name, value in found.items() if issubclass(value, base) and name not in left_out}


OURS = {cls.__name__: cls for cls in (CentroidTripletLoss, DynamicSoftMarginLoss, ManifoldLoss, NCALoss)} | FORMS
LIBRARY = dict(sorted((_classes(losses, losses.BaseMetricLossFunction) | OURS).items()))
MINERS = dict(sorted((_classes(miners, miners.BaseMiner) | {'MaximumLossMiner': MaximumLossMiner}).items()))

# options whose values are objects of the library: a class name, or {'name': ..., option: value, ...}
_REGULARIZERS = _classes(regularizers, regularizers.BaseRegularizer)
PARTS: dict[str, dict[str, type[nn.Module]]] = {
    'distance': _classes(distances, distances.BaseDistance) | {'SNRDistance': SNRDistance},
    'reducer': {
        cls.__name__: cls
        for cls in (
            reducers.AvgNonZeroReducer,
            reducers.ClassWeightedReducer,
            reducers.MeanReducer,
            reducers.PerAnchorReducer,
            reducers.SumReducer,
            reducers.ThresholdReducer,
        )
    },
    'embedding_regularizer': _REGULARIZERS,
    'weight_regularizer': _REGULARIZERS,
}
NOT_AN_OPTION = {'aggregation_func', 'is_inverted'}


def make_loss(
    name: str, options: Mapping[str, Any] | None = None, *, num_classes: int, embedding_size: int
) -> losses.BaseMetricLossFunction:
    """Build a loss of pytorch-metric-learning, in its matrix form where it has one.

    :param options: arguments of its constructor; `distance`, `reducer` and the regularizers by their class names, or as
        {'name': ..., option: value, ...}. The number of classes and the width of the embeddings are filled in where the
        loss wants them.
    :raises ValueError: the loss or one of its options is unknown, or a value is refused; the message names it.
    """
    if name not in LIBRARY:
        raise ValueError(refusal('loss', name, LIBRARY))
    filled: dict[str, int] = {'num_classes': num_classes} if has_class_weights(name) else {}  # not where it may be None
    filled |= {
        'embedding_size': embedding_size,
        'descriptors_dim': embedding_size,
        'l': embedding_size,
    }
    return construct('loss', name, LIBRARY[name], with_parts('loss', LIBRARY[name], options or {}), filled)


def make_miner(
    name: str | None, options: Mapping[str, Any] | None, make_other_loss: Callable[[str, Any], nn.Module]
) -> nn.Module | None:
    """Build a miner of pytorch-metric-learning; None for none.

    :param make_other_loss: name, options -> the loss that MaximumLossMiner is to look at, where one is named.
    :raises ValueError: as `make_loss` does.
    """
    if name is None:
        if options:
            raise ValueError('miner_options are given without a miner')
        return None
    if name not in MINERS:
        raise ValueError(refusal('miner', name, MINERS))
    options = with_parts('miner', MINERS[name], options or {})
    if name == 'MaximumLossMiner' and options.get('loss') is not None:
        options['loss'] = make_other_loss(options['loss'], options.get('loss_options'))
    return construct('miner', name, MINERS[name], options, {})


def refusal(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence that says why a name cannot be used."""
    reason = NOT_USABLE.get(name)
    return f'{kind} {name!r} cannot be used: {reason}' if reason else unknown_name(kind, name, known)


def has_class_weights(name: str) -> bool:
    """True if a loss of the library learns weights for every class, or for groups of classes."""
    number = arguments(LIBRARY[name]).get('num_classes')
    return name == 'ManifoldLoss' or (number is not None and number.default is inspect.Parameter.empty)


def with_parts(kind: str, cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with objects in place of the names of distances, reducers and regularizers."""
    options = dict(options)
    for part in PARTS.keys() & options.keys() & arguments(cls).keys():
        if options[part] is not None:
            options[part] = _part(kind, part, options[part])
    return options


def _part(kind: str, part: str, value: Any) -> nn.Module:
    given = dict(value) if isinstance(value, Mapping) else {'name': value}
    name = str(given.pop('name', None))
    if name not in PARTS[part]:
        raise ValueError(f'{kind}_options: ' + unknown_name(part, name, PARTS[part]))
    cls = PARTS[part][name]
    for option in given:
        if option in NOT_AN_OPTION or option not in arguments(cls):
            known = [known for known in arguments(cls) if known not in NOT_AN_OPTION]
            raise ValueError(f'{kind}_options: {part}: ' + unknown_name(f'option of {name}', option, known or ['none']))
    given = with_parts(kind, cls, given)
    if name == 'ClassWeightedReducer' and 'weights' in given:
        given['weights'] = torch.as_tensor(given['weights'], dtype=torch.float32)
    try:
        return cls(**given)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f'{kind}_options: {part} {name}: {error}') from error
