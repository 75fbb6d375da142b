"""A model of another library as a chain of parts, each with the parameters that it alone uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

OWN = 'own'  # a pooling that a library has and we do not: attention, the mean of two tokens


class Stage(nn.Module):
    """A part of a model, with modules and parameters that stay the model's own.

    What a name means is looked up again by :meth:`refresh`: LoRA, for one, puts other modules in the place of some.

    :param owner: the whole model.
    :param modules: the names of the modules that the part uses, in the order in which they are called.
    :param parameters: the names of parameters of the model that it uses beside them.
    :param call: computes the part from the model and the part's input; None is to call one module after the other.
    """

    def __init__(
        self,
        owner: nn.Module,
        modules: Sequence[str],
        parameters: Sequence[str] = (),
        call: Callable[[Any, Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self._owner = (owner,)  # in a tuple, it is not registered as a part of its part
        self._names = tuple(modules)
        self._parameter_names = tuple(parameters)
        self._call = call
        self.refresh()

    def refresh(self) -> None:
        (owner,) = self._owner
        for position, name in enumerate(self._names):
            self._modules[str(position)] = owner.get_submodule(name)
        for position, name in enumerate(self._parameter_names):
            self._parameters[f'p{position}'] = owner.get_parameter(name)

    def forward(self, inputs: Tensor) -> Tensor:
        if self._call is not None:
            return self._call(self._owner[0], inputs)
        for module in self._modules.values():
            assert module is not None
            inputs = module(inputs)
        return inputs

    def has_parameters(self) -> bool:
        return next(self.parameters(), None) is not None


def run(stages: Sequence[Stage], inputs: Tensor) -> Tensor:
    """Call one stage after the other."""
    if not torch.compiler.is_compiling():
        for stage in stages:
            stage.refresh()
    for stage in stages:
        inputs = stage(inputs)
    return inputs


def expand(model: nn.Module, names: Sequence[str], depth: int = 2, suffixes: tuple[str, ...] = ()) -> Iterator[str]:
    """Names, with those of plain sequences replaced by the names in them.

    :param depth: how many sequences within sequences are opened.
    :param suffixes: classes with names that end so are opened like sequences.
    """
    for name in names:
        module = model.get_submodule(name)
        opened = type(module) in (nn.Sequential, nn.ModuleList) or type(module).__name__.endswith(suffixes or ('\0',))
        if depth and opened and len(list(module.children())):
            inner = [f'{name}.{child}' for child, _ in module.named_children()]
            yield from expand(model, inner, depth - 1, suffixes)
        else:
            yield name


def group(model: nn.Module, names: Sequence[str]) -> list[Stage]:
    """One stage for each module that has parameters; a module without joins the one before it, or the first."""
    groups: list[list[str]] = []
    pending: list[str] = []
    for name in names:
        has_parameters = next(model.get_submodule(name).parameters(), None) is not None
        if has_parameters:
            groups.append([*pending, name])
            pending = []
        elif groups:
            groups[-1].append(name)
        else:
            pending.append(name)
    return [Stage(model, names) for names in groups or [pending]]
