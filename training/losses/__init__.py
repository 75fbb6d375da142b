"""Losses and miners by name, as objectives that all have one signature."""

from __future__ import annotations

from training.losses.factory import (
    LOSSES,
    MINERS,
    check_objective,
    has_class_weights,
    make_objective,
    needs_positives,
    objective_shape,
)
from training.losses.objective import Objective, Shape
from training.losses.options import unknown_name

__all__ = [
    'LOSSES',
    'MINERS',
    'Objective',
    'Shape',
    'check_objective',
    'has_class_weights',
    'make_objective',
    'needs_positives',
    'objective_shape',
    'unknown_name',
]
