"""How sure a click, or the lack of one, is."""

from __future__ import annotations

import numpy as np


def windowed_confidences(ranks: np.ndarray, clicks: np.ndarray, window: int = 3) -> np.ndarray:
    """Confidences of results by what happened around them, float64 [N] from 0 to 1.

    For result i, over the window of results around it: a = mean of the ranks + 1e-9, cp = mean of the clicks, and
    s = |rᵢ − a| / a. A click has (1 − s)·cp + (1 − cp)·s, a result without one (1 − cp)·(1 − s) + cp·s; both times
    exp(−3(i + 1)/N − 0.3) + 0.25. Then the least becomes 0 and the greatest 1; all are 1 where they are equal.

    :param ranks: scores of the results in the order in which they were shown, [N].
    :param clicks: whether each was clicked, [N].
    :param window: results that are looked at, an odd number; fewer at both ends.
    """
    count, reach = len(ranks), window // 2
    clicked = np.asarray(clicks) > 0
    confidences = np.empty(count)
    for i in range(count):
        around = slice(max(0, i - reach), i + reach + 1)
        mean_rank, mean_click = np.mean(ranks[around]) + 1e-9, np.mean(clicked[around])
        surprise = abs(ranks[i] - mean_rank) / mean_rank
        if clicked[i]:
            value = (1 - surprise) * mean_click + (1 - mean_click) * surprise
        else:
            value = (1 - mean_click) * (1 - surprise) + mean_click * surprise
        confidences[i] = value * (np.exp(-3 * (i + 1) / count - 0.3) + 0.25)
    least, greatest = confidences.min(initial=np.inf), confidences.max(initial=-np.inf)
    if greatest <= least:
        return np.ones(count)
    return (confidences - least) / (greatest - least)
