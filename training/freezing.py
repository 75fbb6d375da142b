"""Which parts of an encoder are trained, and that the others truly stay as they are."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import nn

from finetuner.inference.encoder import Encoder

if TYPE_CHECKING:
    from training.task import Task

logger = logging.getLogger(__name__)

# layers whose buffers change with every batch that they see in training mode
_WITH_STATISTICS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_HELD = '_held_in_evaluation'


def freeze(encoder: Encoder, layers: bool | int) -> None:
    """Exclude layer groups of the backbone from training. What LoRA has added stays trainable in the groups after them.

    Weights of frozen groups get no gradients; call :func:`keep_frozen` whenever the encoder was set to training, so
    that their dropout is off and their running statistics do not move. The head is never frozen.

    :param layers: True for the whole backbone, or how many groups from the input on; False and 0 for none.
    :raises ValueError: the encoder has fewer groups.
    """
    groups = encoder.layer_groups()
    if layers is True:
        head = {id(parameter) for parameter in encoder.head.parameters()}
        frozen = [parameter for parameter in encoder.parameters() if id(parameter) not in head]
    elif layers > len(groups):
        raise ValueError(f'freeze is {layers}, but the model has {len(groups)} groups of layers: give True for all')
    else:
        frozen = [parameter for group in groups[: int(layers)] for parameter in group.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    hold_frozen(encoder)


def frozen_groups(encoder: Encoder) -> int:
    """How many layer groups, from the input on, have no weight that is trained."""
    return _leading_frozen(encoder.layer_groups())


def keep_frozen(encoder: Encoder) -> None:
    """Set what is frozen back to evaluation, after the encoder was set to training. Costs next to nothing.

    Besides the frozen groups this is what lies between groups, if any group is frozen, and normalization over batches
    with frozen weights anywhere: under LoRA too a model's running statistics belong to its weights.
    """
    for module in encoder.__dict__.get(_HELD, ()):
        module.training = False


def hold_frozen(encoder: Encoder) -> None:
    """Note what `keep_frozen` is to set to evaluation: finding it may take a forward, and it is needed every step.

    For those who change what is trained by other means than `freeze`.
    """
    groups = encoder.layer_groups()
    frozen = groups[: _leading_frozen(groups)]
    held = [module for group in frozen for module in group.modules()]
    if frozen:  # dropout after the embeddings, say
        inside = {id(module) for part in (*groups, encoder.head) for module in part.modules()} | {id(encoder)}
        held += [module for module in encoder.modules() if id(module) not in inside]
    for module in encoder.modules():
        parameters = list(module.parameters(recurse=False))
        if isinstance(module, _WITH_STATISTICS) and parameters and not any(p.requires_grad for p in parameters):
            held.append(module)
    # a tuple, so that torch does not take them for further submodules
    setattr(encoder, _HELD, tuple(held))
    keep_frozen(encoder)


def check_trainable(task: Task) -> None:
    """:raises ValueError: nothing in the encoders or in the objective is to be learned."""
    if any(parameter.requires_grad for encoder in task.encoders.values() for parameter in encoder.parameters()):
        return
    if not any(parameter.requires_grad for parameter in task.objective.parameters()):
        raise ValueError(
            'freeze leaves nothing to train: give output_dim for a head, lora, or freeze fewer groups of layers'
        )
    logger.warning('freeze: only weights of the loss are trained, the embeddings stay as they are')


def _leading_frozen(groups: list[nn.Module]) -> int:
    for number, group in enumerate(groups):
        if any(parameter.requires_grad for parameter in group.parameters()):
            return number
    return len(groups)
