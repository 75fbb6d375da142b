"""Optimizers and learning rate schedules by name, with their options checked by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from finetuner.inference.clip_encoders import TEXT, VISION
from training.losses import unknown_name
from training.sparse_adam import SparseAdam
from training.unions import Steps

if TYPE_CHECKING:
    from finetuner.inference.encoder import Encoder
    from training.config import FitConfig
    from training.task import Task


NAMES = (
    'Adadelta', 'Adagrad', 'Adam', 'AdamW', 'SparseAdam', 'Adamax', 'ASGD', 'LBFGS', 'NAdam', 'RAdam', 'RMSprop',
    'Rprop', 'SGD',
)  # fmt: skip
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {name: getattr(torch.optim, name) for name in NAMES}
OPTIMIZERS['SparseAdam'] = SparseAdam
# torch's defaults are for small deterministic problems: it would keep 200 copies of all weights, and leap without
# looking whether the loss falls
DEFAULT_OPTIONS: dict[str, dict[str, Any]] = {
    'LBFGS': {'max_iter': 4, 'history_size': 8, 'line_search_fn': 'strong_wolfe', 'lr': 1.0}
}
# beside the arguments of torch's classes
LAYER_DECAY = 'layer_wise_lr_decay'
OF_ENCODERS = (TEXT, VISION)
"""Encoders that may have options of their own."""
ENCODER_OPTIONS = ('lr', 'weight_decay')

SCHEDULERS = ('linear', 'cosine', 'cosine_with_restarts', 'polynomial', 'constant', 'constant_with_warmup')
# options of single schedules: how many waves (or halves of one), the exponent, the last learning rate
SCHEDULER_OPTIONS = {
    'cosine': ('num_cycles',),
    'cosine_with_restarts': ('num_cycles',),
    'polynomial': ('power', 'lr_end'),
}


class SchedulerOptions(BaseModel):
    """Options of a schedule. A step is a batch or an epoch, as `scheduler_step` says; 'auto' is all of them.

    :param num_cycles: of cosine, default 0.5: from the learning rate down to 0 once; of cosine_with_restarts, default
        1: how many times.
    :param power: of polynomial, default 1.
    :param lr_end: of polynomial: the learning rate after the last step, default 1e-7.
    """

    model_config = ConfigDict(extra='forbid')

    num_warmup_steps: int = Field(default=0, ge=0)
    num_training_steps: Steps = 'auto'
    scheduler_step: Literal['batch', 'epoch'] = 'batch'
    num_cycles: float | None = Field(default=None, gt=0)
    power: float | None = Field(default=None, gt=0)
    lr_end: float | None = Field(default=None, ge=0)


def needs_closure(optimizer: str | torch.optim.Optimizer) -> bool:
    """Whether the optimizer evaluates the batch anew, several times a step, by the function given to `step`."""
    if isinstance(optimizer, str):
        return optimizer == 'LBFGS'
    return isinstance(getattr(optimizer, 'optimizer', optimizer), torch.optim.LBFGS)


def check_optimizer(name: str, options: dict[str, Any] | None, argument: str = 'optimizer') -> None:
    """Refuse an unknown optimizer, an unknown option, or a value that the optimizer refuses.

    :param argument: 'optimizer', or 'loss_optimizer', for which there are no layers.
    :raises ValueError: the message names the argument and the option.
    """
    if name not in OPTIMIZERS:
        raise ValueError(unknown_name(argument, name, OPTIMIZERS))
    options = dict(options or {})
    parameters = inspect.signature(OPTIMIZERS[name]).parameters
    known = [option for option in parameters if option != 'params']
    if argument == 'optimizer':
        decay = options.pop(LAYER_DECAY, None)
        if decay is not None and (isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay <= 1):
            raise ValueError(f'{argument}_options: {LAYER_DECAY} is {decay!r}: give a number above 0, at most 1')
        if decay is not None and name == 'LBFGS':
            raise ValueError(f'{argument}_options: LBFGS has one learning rate for all weights, so no {LAYER_DECAY}')
        for encoder in OF_ENCODERS:
            _check_encoder_options(name, encoder, options.pop(encoder, {}), known)
        known += [LAYER_DECAY, *OF_ENCODERS]
    for option in options:
        if option not in known:
            raise ValueError(f'{argument}_options: ' + unknown_name(f'option of {name}', option, known))
        _check_kind(f'{argument}_options: {option}', options[option], parameters[option].annotation)
    if not options:
        return
    try:
        OPTIMIZERS[name]([torch.zeros(1, requires_grad=True)], **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'{argument}_options of {name}: {error}') from error


def _check_kind(place: str, value: Any, annotation: Any) -> None:
    """Refuse what torch would compare with a number, and tell of that, or take for True.

    :param annotation: torch's, of the option.
    :raises ValueError: the value is of another type.
    """
    kinds = get_args(annotation) or (annotation,)
    if get_origin(annotation) is tuple:
        fits, wanted = _are_numbers(value, len(kinds)), f'{len(kinds)} numbers'
    elif bool in kinds:
        fits, wanted = isinstance(value, bool), 'True or False'
    elif str in kinds:
        fits, wanted = isinstance(value, str), 'a text'
    elif int in kinds:
        fits, wanted = _are_numbers([value], 1) and value % 1 == 0, 'a whole number'
    else:
        fits, wanted = _are_numbers([value], 1), 'a number'
    if not fits and not (value is None and type(None) in kinds):
        raise ValueError(f'{place} is {value!r}: give {wanted}')


def _are_numbers(values: Any, count: int) -> bool:
    if not isinstance(values, list | tuple) or len(values) != count:
        return False
    return all(isinstance(value, Real) and not isinstance(value, bool) for value in values)


def _check_encoder_options(name: str, encoder: str, options: Any, known: Sequence[str]) -> None:
    place = f'optimizer_options: {encoder}'
    if not isinstance(options, dict):
        raise ValueError(f'{place} is {options!r}: give options by their names, such as {{"lr": 1e-5}}')
    if options and name == 'LBFGS':
        raise ValueError(f'{place}: LBFGS has one learning rate for all weights')
    having = [option for option in ENCODER_OPTIONS if option in known]
    for option, value in options.items():
        if option not in having:
            raise ValueError(f'{place}: ' + unknown_name(f'option of an encoder with {name}', option, having))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f'{place}: {option} is {value!r}: give a number, 0 or above')


def make_optimizers(task: Task, config: FitConfig) -> list[torch.optim.Optimizer]:
    """One optimizer for the encoders, and one for the weights of the objective if it has any. Frozen weights are in
    neither.

    Single numbers that the objective learns, such as the temperature of a contrastive loss, go with the encoders, at
    their learning rate and without weight decay, unless a `loss_optimizer` is asked for.

    :raises ValueError: there is nothing to train, or options are for an encoder that is not there.
    """
    from training.config import DEFAULT_LEARNING_RATE, DEFAULT_LOSS_LEARNING_RATE

    rate = _rate(config.optimizer, config.optimizer_options, config.learning_rate, DEFAULT_LEARNING_RATE)
    options = config.optimizer_options or {}
    own = {name: options[name] for name in OF_ENCODERS if name in options}
    groups = encoder_groups(task.by_name, rate, options.get(LAYER_DECAY, 1.0), own)
    learned = [parameter for parameter in task.objective.parameters() if parameter.requires_grad]
    numbers = [] if config.loss_optimizer else [parameter for parameter in learned if not parameter.ndim]
    others = [parameter for parameter in learned if all(parameter is not number for number in numbers)]
    if numbers:
        groups.append({'params': numbers, 'lr': rate, 'weight_decay': 0.0})
    optimizers = []
    if groups:
        optimizers.append(make_optimizer(config.optimizer, groups, rate, config.optimizer_options))
    if others:
        name, of_loss = config.loss_optimizer or config.optimizer, config.loss_optimizer_options
        rate = _rate(name, of_loss, None, DEFAULT_LOSS_LEARNING_RATE)
        optimizers.append(make_optimizer(name, [{'params': others}], rate, of_loss))
    if not optimizers:
        raise ValueError('there is nothing to train: all weights are frozen')
    return optimizers


def encoder_groups(
    encoders: Mapping[str, Encoder],
    rate: float,
    decay: float = 1.0,
    own: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """The weights that are trained, each once, in groups of one learning rate and weight decay.

    :param decay: the last layer group and what comes after it have the full rate, each group before `decay` times that
        of the next one.
    :param own: `lr` and `weight_decay` of single encoders, in place of those of all.
    :raises ValueError: one of `own` is not among the encoders.
    """
    own = own or {}
    for name in own:
        if name not in encoders:
            raise ValueError(f'optimizer_options: {name} is no encoder of this model, which has {", ".join(encoders)}')
    groups: dict[tuple[float, float | None], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for name, encoder in encoders.items():
        its = own.get(name, {})
        layers = encoder.layer_groups() if decay != 1 else []
        parts: list[nn.Module] = [*layers, encoder]
        for position, part in enumerate(parts):
            depth = max(len(layers) - 1 - position, 0)
            key = its.get('lr', rate) * decay**depth, its.get('weight_decay')
            for parameter in part.parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    groups.setdefault(key, []).append(parameter)
    return [
        {'params': parameters, 'lr': lr, **({} if weight_decay is None else {'weight_decay': weight_decay})}
        for (lr, weight_decay), parameters in groups.items()
    ]


def make_optimizer(
    name: str, groups: list[dict[str, Any]], learning_rate: float, options: dict[str, Any] | None
) -> torch.optim.Optimizer:
    """The optimizer by its name, fused where torch can: one pass over the weights, 5 times faster than the default on
    a CPU.

    :param groups: as torch takes them; a group's own `weight_decay` counts only where the optimizer has any.
    """
    cls = OPTIMIZERS[name]
    known = inspect.signature(cls).parameters
    options = DEFAULT_OPTIONS.get(name, {}) | (options or {}) | {'lr': learning_rate}
    options = {option: value for option, value in options.items() if option not in (LAYER_DECAY, *OF_ENCODERS)}
    if name == 'LBFGS':  # takes one group only
        return cls([parameter for group in groups for parameter in group['params']], **options)
    groups = [{key: value for key, value in group.items() if key == 'params' or key in known} for group in groups]
    chosen = {'fused', 'foreach', 'differentiable'} & options.keys()
    if not chosen and 'fused' in known and _can_fuse(name, groups):
        options['fused'] = True
    return cls(groups, **options)


def check_scheduler(name: str | None, options: SchedulerOptions | None) -> None:
    """Refuse an unknown schedule, or an option that it does not have.

    :raises ValueError: the message names the option.
    """
    if name is not None and name not in SCHEDULERS:
        raise ValueError(unknown_name('scheduler', name, SCHEDULERS))
    if name is None and options:
        raise ValueError('scheduler_options are given without a scheduler')
    for option in _own_options(options) if options else ():
        if option not in SCHEDULER_OPTIONS.get(str(name), ()):
            having = [other for other, its in SCHEDULER_OPTIONS.items() if option in its]
            raise ValueError(f'scheduler_options: {option} is no option of {name!r} but of {" and ".join(having)}')
    if name == 'cosine_with_restarts' and options and options.num_cycles and options.num_cycles % 1:
        raise ValueError(f'scheduler_options: num_cycles of {name} is {options.num_cycles}: give a whole number')


def make_scheduler(
    name: str | None, optimizer: torch.optim.Optimizer, options: SchedulerOptions, *, batches: int, epochs: int
) -> LRScheduler:
    """The schedule by its name; None is a constant learning rate.

    :param batches: optimizer steps of the whole run.
    :raises ValueError: an option is not one of this schedule, or `lr_end` is above the learning rate.
    """
    from transformers import get_scheduler

    if name is not None:
        check_scheduler(name, options)
    steps = {'batch': batches, 'epoch': epochs}[options.scheduler_step]
    if options.num_training_steps != 'auto':
        steps = options.num_training_steps
    own = _own_options(options)
    if name == 'polynomial':  # transformers' default for the end may be above a small learning rate
        own.setdefault('lr_end', min(1e-7, optimizer.defaults['lr'] / 100))
        steps = max(steps, options.num_warmup_steps + 1)  # it divides by what is left after the warm-up
    return get_scheduler(name or 'constant', optimizer, options.num_warmup_steps, steps, own)


def _own_options(options: SchedulerOptions) -> dict[str, Any]:
    return options.model_dump(include={'num_cycles', 'power', 'lr_end'}, exclude_none=True)


def _rate(name: str, options: dict[str, Any] | None, given: float | None, default: float) -> float:
    """The learning rate: that of the options wins over the argument, that over the defaults."""
    if 'lr' in (options or {}):
        return float((options or {})['lr'])
    return float(given or DEFAULT_OPTIONS.get(name, {}).get('lr', default))


def _can_fuse(name: str, groups: list[dict[str, Any]]) -> bool:
    """Adagrad is fused on CPUs only; nothing is where weights are not floats of a device that has the kernels."""
    devices = {parameter.device.type for group in groups for parameter in group['params']}
    return devices <= ({'cpu'} if name == 'Adagrad' else {'cpu', 'cuda'})
