from __future__ import annotations

import pytest
import torch

from finetuner.inference.dropout import drop


@pytest.mark.parametrize('p', [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize('shape', [(7,), (501, 33), (2, 3, 4, 50)])
def test_what_is_kept_is_scaled(p, shape):
    torch.manual_seed(0)
    states = torch.ones(shape, requires_grad=True)
    dropped = drop(states, p)
    values = dropped.unique().tolist()
    assert all(value == pytest.approx(1 / (1 - p), rel=1e-4) for value in values if value)
    dropped.backward(torch.full(shape, 2.0))
    assert torch.equal(states.grad, 2 * dropped.detach())


def test_the_share_is_right_everywhere():
    torch.manual_seed(0)
    kept = (drop(torch.ones(1000, 401), 0.1) != 0).float()
    assert kept.mean().item() == pytest.approx(0.9, abs=0.002)
    # in every lane of the words that the numbers come from, and nowhere alike
    for lane in range(4):
        assert kept.flatten()[lane::4].mean().item() == pytest.approx(0.9, abs=0.004)
    neighbours = (kept[:, 1:] * kept[:, :-1]).mean().item()
    assert neighbours == pytest.approx(0.81, abs=0.004)


def test_the_same_state_gives_the_same_mask():
    state, states = torch.get_rng_state(), torch.ones(999)
    first, second = drop(states, 0.3), drop(states, 0.3)
    torch.set_rng_state(state)
    assert torch.equal(drop(states, 0.3), first) and not torch.equal(first, second)
