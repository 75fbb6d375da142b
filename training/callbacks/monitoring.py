"""Watching one of the figures of a training: which it is, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

Mode = Literal['auto', 'min', 'max']


class Monitor:
    """Tells whether a figure has become better.

    :param figure: its name; one that other callbacks prefix, as in 'clip-text-to-clip-vision_recall_at_k', may be
        given without the prefix where that is clear.
    :param mode: 'min' if less is better, 'max' if more is; 'auto' is 'min' for what has 'loss' in its name.
    :param min_delta: by how much it must be better.
    """

    def __init__(self, figure: str, mode: Mode = 'auto', min_delta: float = 0.0):
        self.figure, self.min_delta = figure, min_delta
        self.less = mode == 'min' or (mode == 'auto' and 'loss' in figure)

    def value(self, metrics: Mapping[str, float]) -> float:
        """The figure as it is now.

        :raises ValueError: there is none of this name, or there are several; the message says which there are.
        """
        if self.figure in metrics:
            return metrics[self.figure]
        found = [name for name in metrics if name.endswith(f'_{self.figure}')]
        if len(found) == 1:
            return metrics[found[0]]
        if found:
            raise ValueError(f'monitor={self.figure!r} may be any of {", ".join(found)}: give one of these')
        raise ValueError(unavailable(self.figure, metrics))

    def is_better(self, value: float, than: float | None) -> bool:
        """A figure that is no number is never better; anything else is better than None."""
        if math.isnan(value):
            return False
        if than is None:
            return True
        return value < than - self.min_delta if self.less else value > than + self.min_delta


def check_monitor(callback: str, figure: str, known: Iterable[str]) -> None:
    """:raises ValueError: no figure that is known is called so, with or without a prefix."""
    known = list(known)
    if not any(figure == name or figure.endswith(f'_{name}') for name in known):
        hint = ' (val_loss needs eval_data or val_split)' if figure == 'val_loss' else ''
        hint = hint or (' (metrics need an EvaluationCallback)' if figure.endswith(RETRIEVAL) else '')
        raise ValueError(f'{callback}: {unavailable(figure, known)}{hint}')


RETRIEVAL = ('_at_k', 'average_precision', 'reciprocal_rank')


def unavailable(figure: str, known: Iterable[str]) -> str:
    return f'monitor={figure!r} is not there: this run has {", ".join(known) or "none"}'
