"""The losses and miners of pytorch-metric-learning, by name, with their options checked by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import nn

# what a loss of another kind of data is missing here
NOT_FOR_LABELS = {
    'CrossBatchMemory': 'it wraps another loss, which cannot be given by name',
    'GenericPairLoss': 'it is a base class',
    'ManifoldLoss': 'it needs a meta-class per cluster',
    'MultipleLosses': 'it wraps other losses, which cannot be given by name',
    'SelfSupervisedLoss': 'it needs two views of every item, not labels',
    'VICRegLoss': 'it needs two views of every item, not labels',
    'EmbeddingsAlreadyPackagedAsTriplets': 'it needs batches of ready triplets, not labels',
}
# arguments that the data and the model decide
FROM_DATA = frozenset({'num_classes', 'embedding_size', 'descriptors_dim'})
# arguments that pass functions between the library's own classes
INTERNAL = frozenset({'mat_based_loss', 'weight_init_func', 'collect_stats'})


def _classes(module: Any, base: type[nn.Module]) -> dict[str, type[nn.Module]]:
    found: dict[str, type[nn.Module]] = dict(inspect.getmembers(module, inspect.isclass))
    found = {name: value for name, value in found.items() if issubclass(value, base)}
    return {name: value for name, value in sorted(found.items()) if value is not base and name not in NOT_FOR_LABELS}


LOSSES = _classes(losses, losses.BaseMetricLossFunction)
MINERS = _classes(miners, miners.BaseMiner)
# options whose values are objects of the library: given by their class name
PARTS = {
    'distance': _classes(distances, distances.BaseDistance),
    'reducer': {cls.__name__: cls for cls in (reducers.AvgNonZeroReducer, reducers.MeanReducer, reducers.SumReducer)},
    'embedding_regularizer': _classes(regularizers, regularizers.BaseRegularizer),
    'weight_regularizer': _classes(regularizers, regularizers.BaseRegularizer),
}


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence that refuses an unknown name and lists the near ones, or all if none is near."""
    by_lower = {value.lower(): value for value in known}
    near = [by_lower[value] for value in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    return f'unknown {kind} {name!r}: ' + (f'did you mean {" or ".join(near)}?' if near else f'use {", ".join(known)}')


def _arguments(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's arguments, those of base classes reached through *args and **kwargs included."""
    arguments: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base is nn.Module:
            break
        for name, parameter in inspect.signature(base.__init__).parameters.items():  # type: ignore[misc]
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and name not in INTERNAL | {'self'}:
                arguments.setdefault(name, parameter)
    return arguments


def has_class_weights(loss: str) -> bool:
    """True if the loss learns weights for every class (ArcFaceLoss, ProxyAnchorLoss, ...)."""
    number = _arguments(LOSSES[loss]).get('num_classes')
    return number is not None and number.default is inspect.Parameter.empty


def make_loss(name: str, options: dict[str, Any] | None, *, num_classes: int, embedding_size: int) -> nn.Module:
    """Build a loss of pytorch-metric-learning.

    :param options: arguments of its constructor; `distance`, `reducer` and the regularizers by their class names. The
        number of classes and the width of the embeddings are filled in where the loss wants them.
    :raises ValueError: the loss or one of its options is unknown, or a value is refused; the message names it.
    """
    if name not in LOSSES:
        reason = NOT_FOR_LABELS.get(name)
        raise ValueError(f'loss {name!r} cannot be used: {reason}' if reason else unknown_name('loss', name, LOSSES))
    filled = {'num_classes': num_classes, 'embedding_size': embedding_size, 'descriptors_dim': embedding_size}
    filled = {key: value for key, value in filled.items() if key in _arguments(LOSSES[name])}
    return _make('loss', name, LOSSES[name], options or {}, filled)


def make_miner(name: str | None, options: dict[str, Any] | None) -> nn.Module | None:
    """Build a miner of pytorch-metric-learning; None for none. Raises as `make_loss` does."""
    if name is None:
        if options:
            raise ValueError('miner_options are given without a miner')
        return None
    if name not in MINERS:
        reason = NOT_FOR_LABELS.get(name)
        raise ValueError(f'miner {name!r} cannot be used: {reason}' if reason else unknown_name('miner', name, MINERS))
    return _make('miner', name, MINERS[name], options or {}, {})


def _make(kind: str, name: str, cls: type, options: dict[str, Any], filled: dict[str, int]) -> nn.Module:
    known = {argument: value for argument, value in _arguments(cls).items() if argument not in FROM_DATA}
    for option in options:
        if option in FROM_DATA:
            raise ValueError(f'{kind}_options: {option!r} is filled in from the data and the model')
        if option not in known:
            raise ValueError(f'{kind}_options: ' + unknown_name(f'option of {name}', option, known))
    missing = [a for a, value in known.items() if value.default is inspect.Parameter.empty and a not in options]
    if missing:
        raise ValueError(f'{kind}_options: {name} needs {" and ".join(missing)}')
    options = dict(options)
    for part, parts in PARTS.items():
        if options.get(part) is not None:
            if options[part] not in parts:
                raise ValueError(f'{kind}_options: ' + unknown_name(part, str(options[part]), parts))
            options[part] = parts[options[part]]()
    try:
        return cls(**options, **filled)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f'{kind}_options of {name}: {error}') from error
