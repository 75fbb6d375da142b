"""Turns a data set and a config into an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.callbacks import Callback
    from training.config import FitConfig
    from training.local import fit
    from training.pipeline import FitResult

__all__ = ['Callback', 'FitConfig', 'FitResult', 'fit']


def __getattr__(name: str) -> Any:  # torch is loaded when it is needed: a worker says that it lives before that
    if name == 'fit':
        from training.local import fit

        return fit
    if name == 'FitResult':
        from training.pipeline import FitResult

        return FitResult
    if name == 'FitConfig':
        from training.config import FitConfig

        return FitConfig
    if name == 'Callback':
        from training.callbacks import Callback

        return Callback
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
