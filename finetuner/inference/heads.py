"""The head of a model whose directory has an `encoder.json`: described there, weights in `head.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from finetuner.inference.layers import Dense

HEAD_FILE = 'head.safetensors'


def save_head(head: nn.ModuleList, directory: Path) -> list[dict[str, Any]]:
    """Write the weights of a head, if there is one.

    :return: the entry `head` of `encoder.json`.
    """
    path = directory / HEAD_FILE
    path.unlink(missing_ok=True)
    if not len(head):
        return []
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, path)
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


def load_head(directory: Path, description: Mapping[str, Any]) -> list[Dense]:
    """The head of a model directory.

    :param description: the content of its `encoder.json`.
    :raises ValueError: the head is described in a way that is not known, or its weights are missing or do not fit.
    """
    entries = description.get('head') or []
    if not entries:
        return []
    try:
        layers = [
            Dense(entry['in_features'], entry['out_features'], entry['bias'], entry['activation']) for entry in entries
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{directory} describes a head in encoder.json that is not known: {error}') from error
    if not (directory / HEAD_FILE).is_file():
        raise ValueError(f'{directory} has no {HEAD_FILE}, which encoder.json asks for')
    try:
        nn.ModuleList(layers).load_state_dict(load_file(directory / HEAD_FILE))
    except RuntimeError as error:
        raise ValueError(f'{directory / HEAD_FILE} does not fit encoder.json: {error}') from error
    return layers
