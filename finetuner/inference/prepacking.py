"""Linear layers whose weights lie as oneDNN reads them, for inference on the CPU, and with the activation after them.

Otherwise the library arranges the weights anew for each batch, which counts where a batch is small, and in bf16; the
bias is copied to the output first; and the activation goes through the output once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from finetuner.inference.timing import compare

# What oneDNN and torch keep of each shape of a product that they have computed: up to a megabyte, and no two batches of
# mixed texts have the same number of tokens. They would keep 1024 of each, and read this when they keep the first.
for _variable in ('ONEDNN_PRIMITIVE_CACHE_CAPACITY', 'LRU_CACHE_CAPACITY'):
    os.environ.setdefault(_variable, '128')

PREPACKED_MULTIPLE = 8
"""Of which the number of tokens is to be a multiple: what is kept then serves for single texts again and again, while a
new shape takes some 3 ms."""
_WORTH = 1.02  # what is to be gained at least
_SAME = 1e-4  # of the length of an embedding in fp32; in bf16 the order of a sum shows in the third digit
_SAME_IN_BF16 = 2e-2

# by the names that oneDNN has for them: what is applied, and in which form
_ACTIVATIONS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ('gelu', 'none'): nn.functional.gelu,
    ('gelu', 'tanh'): lambda inputs: nn.functional.gelu(inputs, approximate='tanh'),
    ('relu', ''): nn.functional.relu,
}
# also where some are clipped
_PROBE = torch.cat([torch.linspace(-4, 4, 33), torch.tensor([-1e3, -30.0, -8.0, 8.0, 30.0, 1e3])])
_NO_ACTIVATION = ('none', '')
_HAVE_ACTIVATIONS = ('torch.nn.modules.activation', 'transformers.activations')

_Layer = tuple[nn.Module, str, nn.Linear]  # what it is a part of, by which name, and it


class PrepackedLinear(nn.Module):
    """A linear layer, [..., in] to [..., out], that can do nothing but compute.

    :param activation: what is applied to its output, of :data:`_ACTIVATIONS`.
    """

    def __init__(self, linear: nn.Linear, activation: tuple[str, str] = _NO_ACTIVATION):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.activation = activation
        # neither of them is a parameter: there is nothing to train or to save
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        name, form = self.activation
        output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, name, [], form)
        return output


class _Fusion(NamedTuple):
    """An activation of a part, what oneDNN calls it, and the layer whose output it gets."""

    parent: nn.Module
    name: str
    activation: nn.Module
    known_as: tuple[str, str]
    layer: nn.Linear


class _Swap(NamedTuple):
    """A part of a model, and what takes its place."""

    parent: nn.Module
    name: str
    old: nn.Module
    new: nn.Module


def prepack(model: nn.Module, embed: Callable[[], np.ndarray]) -> bool:
    """Replace the linear layers of a model if that makes it faster here, and leaves its results as they are.

    :param model: in evaluation, on the CPU, in fp32 or bf16. It cannot be trained or saved any more.
    :param embed: has the model embed some samples, float32 [N, dim].
    :return: whether they were replaced.
    """
    layers = _linear_layers(model)
    if not layers or not torch.backends.mkldnn.is_available():
        return False
    fusions = _fusions(model)
    return (bool(fusions) and _swap_if_better(layers, fusions, embed)) or _swap_if_better(layers, [], embed)


def _linear_layers(model: nn.Module) -> list[_Layer]:
    """Where they are. One that stands in two places is there twice, as `named_children` would not have it."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if type(child) is nn.Linear and child.weight.dtype in (torch.float32, torch.bfloat16)
    ]


def _fusions(model: nn.Module) -> list[_Fusion]:
    """Activations, and the layers that are probably before them: the embeddings will tell.

    That is the one defined last before it, or, in a part that has one activation, the first.
    """
    fusions = []
    for parent in model.modules():
        children = [(name, child) for name, child in parent._modules.items() if child is not None]
        layers = [child for _, child in children if type(child) is nn.Linear]
        activations = {name: known_as for name, child in children if (known_as := _onednn_name(child))}
        before = layers[0] if layers else None
        for name, child in children:
            if type(child) is nn.Linear and len(activations) > 1:
                before = child
            elif name in activations and before is not None:
                fusions.append(_Fusion(parent, name, child, activations[name], before))
    return fusions


def _onednn_name(module: nn.Module) -> tuple[str, str] | None:
    """Which of :data:`_ACTIVATIONS` this is."""
    if type(module).__module__ not in _HAVE_ACTIVATIONS or next(module.parameters(), None) is not None:
        return None
    try:
        output = module(_PROBE)
    except Exception:  # it wants more than one input, or another shape
        return None
    names = (name for name, known in _ACTIVATIONS.items() if torch.allclose(output, known(_PROBE), atol=1e-6))
    return next(names, None)


def _swap_if_better(layers: Sequence[_Layer], fusions: Sequence[_Fusion], embed: Callable[[], np.ndarray]) -> bool:
    """Prepack the linear layers, some of them with an activation; undo it if that does not pay."""
    swaps: list[_Swap] = []

    def embed_with(is_new: bool) -> np.ndarray:
        _swap(swaps, is_new)
        return embed()

    try:
        swaps += _swaps(layers, fusions)
        (expected, found), (before, after) = compare([partial(embed_with, False), partial(embed_with, True)])
    except (AttributeError, RuntimeError, TypeError):  # code that reads the weights by itself
        _swap(swaps, False)
        return False
    is_reduced = any(layer.weight.dtype is torch.bfloat16 for _, _, layer in layers)
    tolerance = (_SAME_IN_BF16 if is_reduced else _SAME) * np.linalg.norm(expected, axis=1)
    is_same = bool((np.linalg.norm(found - expected, axis=1) <= tolerance).all())
    is_better = is_same and before > _WORTH * after
    _swap(swaps, is_better)
    return is_better


def _swaps(layers: Sequence[_Layer], fusions: Sequence[_Fusion]) -> list[_Swap]:
    """What takes the place of the layers, each packed once, and of the activations that go with them."""
    activations = {id(fusion.layer): fusion.known_as for fusion in fusions}
    packed: dict[int, PrepackedLinear] = {}
    for _, _, layer in layers:
        if id(layer) not in packed:
            packed[id(layer)] = PrepackedLinear(layer, activations.get(id(layer), _NO_ACTIVATION))
    return [_Swap(parent, name, layer, packed[id(layer)]) for parent, name, layer in layers] + [
        _Swap(fusion.parent, fusion.name, fusion.activation, nn.Identity()) for fusion in fusions
    ]


def _swap(swaps: Sequence[_Swap], is_new: bool) -> None:
    for swap in swaps:
        setattr(swap.parent, swap.name, swap.new if is_new else swap.old)
