"""The dense layers after pooling, in a directory with `encoder.json`: sizes there, weights in `head.safetensors`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from finetuner.inference.layers import Dense

HEAD_FILE = 'head.safetensors'
_ACTIVATIONS = ('ReLU', 'GELU', 'SiLU', 'Tanh', 'Sigmoid', 'Identity')


def describe_head(head: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """What `encoder.json` says of a head."""
    return [
        {
            'in_features': layer.linear.in_features,
            'out_features': layer.linear.out_features,
            'bias': layer.linear.bias is not None,
            'activation': type(layer.activation).__name__,
        }
        for layer in head
        if isinstance(layer, Dense)
    ]


def save_head(head: nn.ModuleList, directory: Path) -> None:
    """Write the weights of a head, and nothing where there is none."""
    if len(head):
        state = {name: weight.detach().cpu().contiguous() for name, weight in head.state_dict().items()}
        save_file(state, directory / HEAD_FILE)
    else:
        (directory / HEAD_FILE).unlink(missing_ok=True)


def load_head(description: Sequence[dict[str, Any]], directory: Path) -> list[Dense]:
    """Read a head.

    :param description: as :func:`describe_head` gives it.
    :raises ValueError: the description or the weights are not as they are written here.
    """
    layers = []
    for item in description:
        if item.get('activation') not in _ACTIVATIONS:
            raise ValueError(f'{directory}: the activation of a head is one of {", ".join(_ACTIVATIONS)}')
        layers.append(Dense(item['in_features'], item['out_features'], item['bias'], item['activation']))
    if layers:
        nn.ModuleList(layers).load_state_dict(load_file(directory / HEAD_FILE))
    return layers
