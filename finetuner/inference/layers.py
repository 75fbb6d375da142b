"""What comes after the backbone: pooling and dense layers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetuner.inference.layout import GEM_OPTIONS, find_weights, read_json, write_json


def pool(
    tokens: Tensor, mask: Tensor | None = None, pooling: str = 'mean', options: Mapping[str, float] | None = None
) -> Tensor:
    """One vector per item out of one per token, or per position of an image or a cloud of points.

    :param tokens: float [B, T, D].
    :param mask: integers [B, T], 1 for a token and 0 for padding, on either side; None if nothing is padding.
    :param pooling: one of :data:`finetuner.inference.layout.POOLINGS`.
    :param options: as :func:`finetuner.inference.layout.check_pooling` gives them. `gem` is the mean of powers p, and
        its root: with p = 1 the mean of values above `eps`. Smaller ones, so all that are negative, count as `eps`.
    :return: [B, D], of the type of `tokens`.
    """
    if pooling == 'gem':
        power, least = (options or GEM_OPTIONS)['p'], (options or GEM_OPTIONS)['eps']
        tokens = tokens.clamp(min=least)
        if mask is not None:
            tokens = tokens.masked_fill(mask.unsqueeze(-1) == 0, least)
        # relative to the largest, or else high powers would leave the range of floats
        scale = tokens.amax(1, keepdim=True).detach()
        return _mean((tokens / scale).pow(power), mask).pow(1 / power) * scale.squeeze(1)
    if pooling == 'mean':
        return _mean(tokens, mask)
    if pooling == 'max':
        if mask is not None:
            tokens = tokens.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(tokens.dtype).min)
        return tokens.amax(1)
    if mask is None:
        return tokens[:, 0 if pooling == 'cls' else -1]
    if pooling == 'cls':
        index = mask.to(torch.int32).argmax(1)
    else:
        index = (mask * torch.arange(mask.shape[1], device=mask.device)).amax(1)
    return tokens.gather(1, index.to(torch.int64)[:, None, None].expand(-1, 1, tokens.shape[-1])).squeeze(1)


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return tokens.mean(1)
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


class Dense(nn.Module):
    """A linear layer and an activation after pooling, as the module of this name in sentence-transformers."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, activation: str = 'Tanh'):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = getattr(nn, activation)()

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.activation(self.linear(embeddings))

    @classmethod
    def load(cls, directory: Path) -> Dense:
        config = read_json(directory / 'config.json')
        function = str(config.get('activation_function', 'torch.nn.modules.activation.Tanh'))
        location, _, activation = function.rpartition('.')
        if not location.startswith('torch.nn.modules.') or not inspect.isclass(getattr(nn, activation, None)):
            raise ValueError(f'{directory}: the activation {function} is not one of torch.nn')
        if config.get('use_residual') or config.get('module_input_name', 'sentence_embedding') != 'sentence_embedding':
            raise ValueError(f'{directory}: dense layers with a residual or on token embeddings are not supported')
        if not all(isinstance(config.get(size), int) for size in ('in_features', 'out_features')):
            raise ValueError(f'{directory / "config.json"} has no in_features or no out_features')
        dense = cls(config['in_features'], config['out_features'], bool(config.get('bias', True)), activation)
        dense.load_state_dict(load_file(find_weights(directory)))
        return dense

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        config = {
            'in_features': self.linear.in_features,
            'out_features': self.linear.out_features,
            'bias': self.linear.bias is not None,
            'activation_function': f'{type(self.activation).__module__}.{type(self.activation).__name__}',
        }
        write_json(directory / 'config.json', config)
        save_file(self.state_dict(), directory / 'model.safetensors')
