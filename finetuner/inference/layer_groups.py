"""The parts of a transformers backbone from the input to the output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


class Group(nn.ModuleList):
    """Parts of a backbone that belong together but have no module of their own. Is never called itself."""


def find_layers(backbone: nn.Module) -> nn.ModuleList:
    """The stack of layers that a backbone consists of: its ModuleList with most weights.

    :raises ValueError: there is none.
    """
    lists = [module for module in backbone.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise ValueError(f'{type(backbone).__name__} has no list of layers')
    return max(lists, key=lambda module: sum(weight.numel() for weight in module.parameters()))


def layer_groups(backbone: PreTrainedModel) -> list[nn.Module]:
    """The embeddings, then each layer; what comes after a layer belongs to its group. Poolers are left out.

    Where a part belongs is seen from when a forward calls it. Weights that are read without a call of their module,
    as some tables of relative positions are, come first.
    """
    layers = find_layers(backbone)
    known = {id(weight) for weight in layers.parameters()}
    if isinstance(pooler := getattr(backbone, 'pooler', None), nn.Module):
        known |= {id(weight) for weight in pooler.parameters()}
    others = []
    for module in backbone.modules():
        own = [weight for weight in module.parameters(recurse=False) if id(weight) not in known]
        if own:
            others.append(nn.ParameterList(own) if any(module.children()) else module)
            known |= {id(weight) for weight in own}
    before = _layers_before(backbone, layers, others)
    groups: list[list[nn.Module]] = [[], *([layer] for layer in layers)]
    for module in others:
        groups[before.get(module, 0)].append(module)
    return [_join(parts, backbone) for parts in groups if parts]


def _layers_before(
    backbone: PreTrainedModel, layers: nn.ModuleList, modules: Sequence[nn.Module]
) -> dict[nn.Module, int]:
    """How many layers a forward calls before each of the modules, for those that it calls."""
    begun, calls = 0, dict[nn.Module, int]()

    def count(*_: object) -> None:
        nonlocal begun
        begun = min(begun + 1, len(layers))  # shared layers are called many times

    def note(module: nn.Module, *_: object) -> None:
        calls.setdefault(module, begun)

    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    hooks += [module.register_forward_pre_hook(note) for module in modules if module is not backbone]
    try:
        with evaluating(backbone):
            ids = torch.ones(1, 3, dtype=torch.int64, device=backbone.device)
            backbone(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout, gradients and mixed precision; afterwards each part is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(next(module.parameters()).device.type, enabled=False):
            yield
    finally:
        for part, training in modes:
            part.training = training


def _join(parts: list[nn.Module], backbone: nn.Module) -> nn.Module:
    """The module that holds just the weights of the parts, if there is one."""
    if len(parts) == 1:
        return parts[0]
    weights = {id(weight) for part in parts for weight in part.parameters()}
    for module in backbone.modules():
        if {id(weight) for weight in module.parameters()} == weights:
            return module
    return Group(parts)
