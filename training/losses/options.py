"""Options by name: what a constructor takes, checked before it is called."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

# arguments that the data and the model decide; `l` is the embedding size of ManifoldLoss
FROM_DATA = frozenset({'num_classes', 'embedding_size', 'descriptors_dim', 'l', 'logit_scale'})
# what is kept in memory in proportion to it: checking a run makes a small loss, and must not make a large one
SIZES = frozenset({'memory_size', 'num_bins', 'pos_per_bin', 'neg_per_bin', 'sub_centers', 'centers_per_class', 'dims'})
MAX_SIZE = 1_000_000
# what a library takes without a look, and then does as if it were another
CHOICES = {'type_of_triplets': ('all', 'hard', 'semihard', 'easy')}
# arguments that pass functions between the classes of pytorch-metric-learning
INTERNAL = frozenset({'self', 'mat_based_loss', 'weight_init_func', 'collect_stats'})


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence that refuses an unknown name and lists the near ones, or all if none is near."""
    by_lower = {value.lower(): value for value in known}
    near = [by_lower[value] for value in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    return f'unknown {kind} {name!r}: ' + (f'did you mean {" or ".join(near)}?' if near else f'use {", ".join(known)}')


def arguments(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's arguments, those of base classes reached through *args and **kwargs included."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base in (nn.Module, object):
            break
        if '__init__' not in vars(base):
            continue
        for name, parameter in inspect.signature(base.__init__).parameters.items():  # type: ignore[misc]
            named = parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            if named and name not in INTERNAL:
                found.setdefault(name, parameter)
    return found


def check_options(kind: str, name: str, options: Mapping[str, Any], known: Mapping[str, inspect.Parameter]) -> None:
    """Refuse options that are not known and those that miss.

    :raises ValueError: the message names the option.
    """
    known = {argument: parameter for argument, parameter in known.items() if argument not in FROM_DATA}
    for option in options:
        if option in FROM_DATA:
            raise ValueError(f'{kind}_options: {option!r} is filled in from the data and the model')
        if option not in known:
            raise ValueError(f'{kind}_options: ' + unknown_name(f'option of {name}', option, known))
        is_number = type(known[option].default) in (int, float)
        if is_number and isinstance(options[option], str):  # which many a class takes, and cannot compute with
            raise ValueError(f'{kind}_options of {name}: {option} is {options[option]!r}: give a number')
    missing = [a for a, value in known.items() if value.default is inspect.Parameter.empty and a not in options]
    if missing:
        raise ValueError(f'{kind}_options: {name} needs {" and ".join(missing)}')


def construct(kind: str, name: str, cls: type, options: Mapping[str, Any], filled: Mapping[str, Any]) -> Any:
    """An object of the class by its checked options.

    :param filled: values of `FROM_DATA`, of which the class gets those that it takes.
    :raises ValueError: an option is unknown, misses or has a value that the class refuses.
    """
    known = arguments(cls)
    check_options(kind, name, options, known)
    try:
        return cls(**options, **{key: value for key, value in filled.items() if key in known})
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f'{kind}_options of {name}: {error}') from error


def positive(name: str, value: float) -> float:
    """The value, if it is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float('inf'):
        raise ValueError(f'{name} is {value!r}: give a number above 0')
    return float(value)


def check_values(place: str, options: Any) -> None:
    """See that nothing which a loss or a miner keeps in memory is too large to be made, and that what is one of some
    words is one of them. Inner losses and miners are looked at, too.

    :param place: what the options are called.
    :raises ValueError: something is.
    """
    if isinstance(options, Mapping):
        for name, value in options.items():
            sizes = value if isinstance(value, (list, tuple)) else [value]
            too_large = [size for size in sizes if isinstance(size, int | float) and size > MAX_SIZE]
            if name in SIZES and too_large:
                raise ValueError(f'{place}: {name} is {too_large[0]}: give at most {MAX_SIZE}')
            if name in CHOICES:
                one_of(f'{place}: {name}', value, CHOICES[name])
            check_values(place, value)
    elif isinstance(options, (list, tuple)):
        for item in options:
            check_values(place, item)


def one_of(name: str, value: Any, known: Iterable[Any]) -> Any:
    """The value, if it is one of those known."""
    if value not in (known := list(known)):
        raise ValueError(f'{name} is {value!r}: give {" or ".join(map(repr, known))}')
    return value
