"""Adam for weights of which a batch touches few rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class SparseAdam(torch.optim.SparseAdam):
    """Adam that leaves alone what a batch has not touched.

    torch's class takes sparse gradients only, which no layer of a transformer or of a CNN gives. Here gradients are
    dense, and their rows of zeros are left out: of an embedding table only the tokens of the batch are updated, and the
    moments of the others stay as they are. Weights without such rows are updated as Adam does it.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state, (decay, decay_of_squares) = self.state[parameter], group['betas']
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state['step'] += 1
        assert parameter.grad is not None
        gradient = -parameter.grad if group['maximize'] else parameter.grad
        by_row = gradient.reshape(len(gradient) if gradient.ndim else 1, -1)
        rows = torch.linalg.vector_norm(by_row, ord=1, dim=1).nonzero().squeeze(1)
        if not len(rows):
            return
        parts = [gradient, state['exp_avg'], state['exp_avg_sq'], parameter]
        some = gradient.ndim > 0 and len(rows) < len(gradient)
        if some:
            parts = [part[rows] for part in parts]
        gradient, mean, squares, weights = parts
        mean.lerp_(gradient, 1 - decay)
        squares.mul_(decay_of_squares).addcmul_(gradient, gradient, value=1 - decay_of_squares)
        rate = group['lr'] * (1 - decay_of_squares ** state['step']) ** 0.5 / (1 - decay ** state['step'])
        weights.addcdiv_(mean, squares.sqrt().add_(group['eps']), value=-rate)
        if some:
            for whole, part in ((state['exp_avg'], mean), (state['exp_avg_sq'], squares), (parameter, weights)):
                whole[rows] = part
