"""Linear layers whose weights lie as oneDNN reads them, for inference on the CPU.

Otherwise the library arranges the weights anew for each batch, which counts where a batch is small, and in bf16; and
the bias is copied to the output first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

_ROUNDS = 2
_WORTH = 1.02  # what is to be gained at least
_SAME = 1e-4  # of the length of an embedding in fp32; in bf16 the order of a sum shows in the third digit
_SAME_IN_BF16 = 2e-2


class PrepackedLinear(nn.Module):
    """A linear layer, [..., in] to [..., out], that can do nothing but compute."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # neither of them is a parameter: there is nothing to train or to save
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, 'none', [], '')
        return output


def prepack(model: nn.Module, embed: Callable[[], np.ndarray]) -> bool:
    """Replace the linear layers of a model if that makes it faster here, and leaves its results as they are.

    :param model: in evaluation, on the CPU, in fp32 or bf16. It cannot be trained or saved any more.
    :param embed: has the model embed some samples, float32 [N, dim].
    :return: whether they were replaced.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    layers = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()  # unlike `named_children`, with one that stands in two places
        if type(child) is nn.Linear and child.weight.dtype in (torch.float32, torch.bfloat16)
    ]
    if not layers:
        return False
    packed: dict[int, PrepackedLinear] = {}
    try:
        for _, _, layer in layers:
            if id(layer) not in packed:  # one that stands in several places
                packed[id(layer)] = PrepackedLinear(layer)
        ways: list[Mapping[int, nn.Module]] = [{id(layer): layer for _, _, layer in layers}, packed]
        expected, found, gain = _try(layers, ways, embed)
    except (AttributeError, RuntimeError, TypeError):  # code that reads the weights by itself
        expected, found, gain = np.zeros((1, 1)), np.ones((1, 1)), 0.0
    is_reduced = any(layer.weight.dtype is torch.bfloat16 for _, _, layer in layers)
    tolerance = (_SAME_IN_BF16 if is_reduced else _SAME) * np.linalg.norm(expected, axis=1, keepdims=True)
    is_better = gain > _WORTH and bool((np.abs(found - expected) <= tolerance).all())
    for parent, name, layer in layers:
        setattr(parent, name, packed[id(layer)] if is_better else layer)
    return is_better


def _try(
    layers: list[tuple[nn.Module, str, nn.Linear]], ways: list[Mapping[int, nn.Module]], embed: Callable[[], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, float]:
    """The embeddings with the layers as they are and with others in their place, and how much faster these are."""
    results: list[np.ndarray] = [np.empty(0)] * len(ways)
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(1 + _ROUNDS):
        for way, replaced in enumerate(ways):
            for parent, name, layer in layers:
                setattr(parent, name, replaced[id(layer)])
            began = time.perf_counter()
            results[way] = embed()
            seconds[way].append(time.perf_counter() - began)
    before, after = (min(taken[1:]) for taken in seconds)  # the first round warms up
    return results[0], results[1], before / after
