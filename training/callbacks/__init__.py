"""What can take part in a training beside the loop: one file per callback.

`training.callbacks.Callback` is the base of your own. Those that `fit` knows by name are made by
:func:`training.callbacks.making.make_callbacks`.
"""

from training.callbacks.base import Callback

__all__ = ['Callback']
