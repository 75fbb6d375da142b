"""What comes after the backbone: pooling and dense layers."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetuner.inference.layout import find_weights, read_json, write_json


def pool(tokens: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector per text out of one per token.

    :param tokens: float [B, T, D].
    :param mask: integers [B, T], 1 for a token and 0 for padding, on either side.
    :param pooling: one of :data:`POOLINGS`.
    :return: [B, D], of the type of `tokens`.
    """
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    if pooling == 'mean':
        return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if pooling == 'max':
        return tokens.masked_fill(weights == 0, torch.finfo(tokens.dtype).min).amax(1)
    if pooling == 'cls':
        index = mask.to(torch.int32).argmax(1)
    else:
        index = (mask * torch.arange(mask.shape[1], device=mask.device)).amax(1)
    return tokens.gather(1, index.to(torch.int64)[:, None, None].expand(-1, 1, tokens.shape[-1])).squeeze(1)


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
