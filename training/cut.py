"""An encoder cut in two behind its frozen layers: the first part computed once, the second one resumed from there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetuner.inference.encoder import Encoder
from finetuner.inference.text_encoder import TextEncoder
from training.rows import Rows

PROBES = 3  # items on which a cut is tried


class CannotCut(Exception):
    """The encoder cannot be resumed in its middle."""


class Cut(ABC):
    """Where an encoder is cut.

    :param depth: how many layer groups are before the cut.
    """

    def __init__(self, encoder: Encoder, depth: int):
        self.encoder, self.depth = encoder, depth

    @property
    def name(self) -> str:
        return f'{type(self).__name__} {self.depth}'

    @property
    def trained(self) -> list[nn.Module]:
        """The parts behind the cut."""
        return [*self.encoder.layer_groups()[self.depth :], self.encoder.head]

    @abstractmethod
    def compute(self, features: Sequence[np.ndarray], device: torch.device) -> list[np.ndarray]:
        """The values of some items at the cut, float32 [L, *tail] each; the encoder is in evaluation."""

    @abstractmethod
    def resume(self, hidden: Tensor, lengths: np.ndarray) -> Tensor:
        """Go on from such values to embeddings, float32 [B, dim], with gradients.

        :param hidden: those of all items one after the other, float32 [sum of the lengths, *tail].
        :param lengths: int64 [B].
        """

    def size(self, sample: Sequence[np.ndarray], features: Rows, costs: np.ndarray) -> int:
        """How many bytes the values of all items will take, by those of one."""
        return sample[0].nbytes * len(features)


class PooledCut(Cut):
    """Behind pooling: the whole backbone is frozen."""

    @property
    def trained(self) -> list[nn.Module]:
        return [self.encoder.head]

    def compute(self, features: Sequence[np.ndarray], device: torch.device) -> list[np.ndarray]:
        pooled = self.encoder.pooled(**_inputs(self.encoder, features, device))
        return list(pooled.float().cpu().numpy()[:, None])

    def resume(self, hidden: Tensor, lengths: np.ndarray) -> Tensor:
        return self.encoder.finish(hidden)


class PackedCut(Cut):
    """Between layers of a text model that takes texts without padding: the hidden states of all tokens."""

    encoder: TextEncoder

    def compute(self, features: Sequence[np.ndarray], device: torch.device) -> list[np.ndarray]:
        lengths = np.array([len(row) for row in features])
        tokens = torch.from_numpy(np.concatenate(features).astype(np.int64)).to(device)
        hidden = self.encoder.packed_hidden(tokens, torch.from_numpy(lengths).to(device), self.depth)
        return np.split(hidden.float().cpu().numpy(), np.cumsum(lengths)[:-1])

    def resume(self, hidden: Tensor, lengths: np.ndarray) -> Tensor:
        return self.encoder.packed_from(hidden, torch.from_numpy(lengths).to(hidden.device), self.depth)

    def size(self, sample: Sequence[np.ndarray], features: Rows, costs: np.ndarray) -> int:
        return sample[0].nbytes // len(sample[0]) * int(costs.sum())


class HookedCut(Cut):
    """Between two layer groups of any other model: what the last frozen group gave, a tensor or several.

    The rest of the model runs as its library wrote it, on an input of zeros: frozen groups hand it through, and the
    last of them gives the cached values instead.
    """

    def __init__(self, encoder: Encoder, depth: int, features: Rows, device: torch.device):
        super().__init__(encoder, depth)
        self.groups = encoder.layer_groups()[:depth]
        self.blank = np.zeros_like(features[0])
        self.is_tuple = False
        self.shapes: list[torch.Size] = []
        self._probe(features.take(np.arange(min(PROBES, len(features)))), device)

    def compute(self, features: Sequence[np.ndarray], device: torch.device) -> list[np.ndarray]:
        given: list[Any] = []
        handle = self.groups[-1].register_forward_hook(lambda _, inputs, output: given.append(output))
        try:
            self.encoder.pooled(**_inputs(self.encoder, features, device))
        finally:
            handle.remove()
        if len(given) != 1:
            raise CannotCut(f'a layer was called {len(given)} times')
        self.is_tuple = isinstance(given[0], (tuple, list))
        parts = list(given[0]) if self.is_tuple else given
        for part in parts:
            if not isinstance(part, Tensor) or not part.is_floating_point() or len(part) != len(features):
                raise CannotCut('a layer gives something else than numbers for every item')
        shapes = [part.shape[1:] for part in parts]
        if self.shapes not in (shapes, []):
            raise CannotCut('items differ in shape')
        self.shapes = shapes
        flat = torch.cat([part.float().flatten(1) for part in parts], 1)
        return list(flat.cpu().numpy()[:, None])

    def resume(self, hidden: Tensor, lengths: np.ndarray) -> Tensor:
        parts = hidden.split([shape.numel() for shape in self.shapes], 1)
        values = [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        inputs = _inputs(self.encoder, [self.blank], hidden.device)
        inputs = {name: blank.expand(len(hidden), *blank.shape[1:]) for name, blank in inputs.items()}
        with self._replaced(tuple(values) if self.is_tuple else values[0]):
            return self.encoder.finish(self.encoder.pooled(**inputs))

    @contextmanager
    def _replaced(self, value: Any) -> Iterator[None]:
        """Frozen groups that compute nothing."""
        try:
            for group in self.groups:
                group.forward = lambda given, *_, **__: given
            self.groups[-1].forward = lambda *_, **__: value
            yield
        finally:
            for group in self.groups:
                del group.forward  # of the object; that of the class is there again

    @torch.no_grad()
    def _probe(self, features: list[np.ndarray], device: torch.device) -> None:
        """:raises CannotCut: the encoder, resumed, gives something else than the whole one."""
        try:
            hidden = torch.from_numpy(np.concatenate(self.compute(features, device))).to(device)
            resumed = self.resume(hidden, np.ones(len(features), np.int64))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CannotCut(f'the model cannot be resumed behind layer group {self.depth}: {error}') from error
        whole = self.encoder(**_inputs(self.encoder, features, device))
        atol = 1e-4 * float(whole.abs().mean())
        if resumed.shape != whole.shape or not torch.allclose(resumed, whole, rtol=1e-3, atol=atol):
            raise CannotCut(f'the model does not go by its layer groups behind number {self.depth}')


def make_cut(encoder: Encoder, depth: int, features: Rows, device: torch.device) -> Cut:
    """Cut an encoder behind its first `depth` layer groups.

    :raises CannotCut: it is of a kind that cannot be cut there.
    """
    head = {id(parameter) for parameter in encoder.head.parameters()}
    if not any(parameter.requires_grad and id(parameter) not in head for parameter in encoder.parameters()):
        return PooledCut(encoder, depth)
    if isinstance(encoder, TextEncoder):
        if not encoder.can_split:
            raise CannotCut(f'a {encoder.backbone.config.model_type} cannot be resumed between its layers')
        return PackedCut(encoder, depth)
    return HookedCut(encoder, depth, features, device)


def _inputs(encoder: Encoder, features: Sequence[np.ndarray], device: torch.device) -> dict[str, Tensor]:
    inputs = encoder.preprocessor.collate(features)
    return {name: torch.from_numpy(inputs[name]).to(device) for name in encoder.input_names}
