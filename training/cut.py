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
from finetuner.inference.transfer import on_device
from training.embed import by_length, length_chunks, model_inputs, run
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
    def resume(self, hidden: Tensor, lengths: np.ndarray, features: Sequence[np.ndarray]) -> Tensor:
        """Go on from such values to embeddings, float32 [B, dim], with gradients.

        :param hidden: those of all items one after the other, float32 [sum of the lengths, *tail].
        :param lengths: int64 [B].
        :param features: of the same items; they are not looked at where values are all that the rest needs.
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
        with _without_head(self.encoder) as encoder:
            if isinstance(encoder, TextEncoder) and encoder.can_pack:
                tokens = on_device(np.concatenate(features).astype(np.int64), device)
                pooled = encoder.packed(tokens, torch.tensor([len(row) for row in features]))
            else:
                pooled = by_length(
                    np.array([len(row) for row in features]),
                    device,
                    lambda chunk: run(encoder, [features[place] for place in chunk], device),
                )
        return list(pooled.cpu().numpy()[:, None])

    def resume(self, hidden: Tensor, lengths: np.ndarray, features: Sequence[np.ndarray]) -> Tensor:
        return self.encoder.finish(hidden)


class PackedCut(Cut):
    """Between layers of a text model that takes texts without padding: the hidden states of all tokens."""

    encoder: TextEncoder

    def compute(self, features: Sequence[np.ndarray], device: torch.device) -> list[np.ndarray]:
        lengths = np.array([len(row) for row in features])
        tokens = on_device(np.concatenate(features).astype(np.int64), device)
        hidden = self.encoder.packed_hidden(tokens, torch.from_numpy(lengths), self.depth)
        return np.split(hidden.float().cpu().numpy(), np.cumsum(lengths)[:-1])

    def resume(self, hidden: Tensor, lengths: np.ndarray, features: Sequence[np.ndarray]) -> Tensor:
        return self.encoder.packed_from(hidden, torch.from_numpy(lengths), self.depth)

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
        # shortest and longest: a difference in length is where texts go wrong
        order = np.argsort(features.lengths(np.arange(len(features))), kind='stable')
        self._probe(features.take(order[np.linspace(0, len(order) - 1, min(PROBES, len(order))).astype(int)]), device)

    def compute(self, features: Sequence[np.ndarray], device: torch.device) -> list[np.ndarray]:
        output = self._run(features, device)
        self.is_tuple = isinstance(output, (tuple, list))
        parts = list(output) if self.is_tuple else [output]
        for part in parts:
            _check(part, len(features))
        shapes = [part.shape[1:] for part in parts]
        if self.shapes not in (shapes, []):
            raise CannotCut('items differ in shape')
        self.shapes = shapes
        return list(torch.cat([part.float().flatten(1) for part in parts], 1).cpu().numpy()[:, None])

    def resume(self, hidden: Tensor, lengths: np.ndarray, features: Sequence[np.ndarray]) -> Tensor:
        parts = hidden.split([shape.numel() for shape in self.shapes], 1)
        values = [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        inputs = model_inputs(self.encoder, [self.blank], hidden.device)
        inputs = {name: blank.expand(len(hidden), *blank.shape[1:]) for name, blank in inputs.items()}
        with self._replaced(tuple(values) if self.is_tuple else values[0]):
            return self.encoder.finish(self.encoder.pooled(**inputs))

    def _run(self, features: Sequence[np.ndarray], device: torch.device) -> Any:
        """What the last frozen group gives."""
        given: list[Any] = []
        handle = self.groups[-1].register_forward_hook(lambda _, inputs, output: given.append(output))
        try:
            self.encoder.pooled(**model_inputs(self.encoder, features, device))
        finally:
            handle.remove()
        if len(given) != 1:
            raise CannotCut(f'layer group {self.depth} is called {len(given)} times')
        return given[0]

    @contextmanager
    def _replaced(self, value: Any) -> Iterator[None]:
        """Frozen groups that compute nothing."""
        try:
            for group in self.groups:
                group.forward = lambda *given, **named: (*given, *named.values())[0]
            self.groups[-1].forward = lambda *_, **__: value
            yield
        finally:
            for group in self.groups:
                del group.forward  # of the object; that of the class is there again

    @torch.no_grad()
    def _probe(self, features: list[np.ndarray], device: torch.device) -> None:
        """:raises CannotCut: the encoder, resumed, gives something else than the whole one."""
        try:
            rows = self.compute(features, device)
            hidden = on_device(np.concatenate(rows), device)
            resumed = self.resume(hidden, np.array([len(row) for row in rows]), features)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CannotCut(f'the model cannot be resumed behind layer group {self.depth}: {error}') from error
        whole = run(self.encoder, features, device)
        atol = 1e-4 * float(whole.abs().mean())
        if resumed.shape != whole.shape or not torch.allclose(resumed, whole, rtol=1e-3, atol=atol):
            raise CannotCut(f'the model does not go by its layer groups behind number {self.depth}')


class PaddedCut(HookedCut):
    """The same for texts that are not packed: the hidden states of all tokens, padded again to go on.

    The rest of the model sees the real token ids: where a text ends is often read from them.
    """

    def compute(self, features: Sequence[np.ndarray], device: torch.device) -> list[np.ndarray]:
        rows: list[np.ndarray] = [np.empty(0)] * len(features)
        lengths = self._lengths(features)
        for chunk in length_chunks(np.asarray(lengths), device):
            hidden = self._run([features[place] for place in chunk], device)
            _check(hidden, len(chunk))
            if hidden.ndim != 3:
                raise CannotCut('a layer gives no vector for every token')
            for place, row in zip(chunk, hidden.float().cpu().numpy(), strict=True):
                rows[place] = row[: lengths[place]]
        return rows

    def resume(self, hidden: Tensor, lengths: np.ndarray, features: Sequence[np.ndarray]) -> Tensor:
        states = hidden.split(lengths.tolist())

        def go_on(chunk: np.ndarray) -> Tensor:
            inputs = model_inputs(self.encoder, [features[place] for place in chunk], hidden.device)
            with self._replaced(nn.utils.rnn.pad_sequence([states[place] for place in chunk], batch_first=True)):
                return self.encoder.pooled(**inputs)

        return self.encoder.finish(by_length(lengths, hidden.device, go_on))

    def size(self, sample: Sequence[np.ndarray], features: Rows, costs: np.ndarray) -> int:
        longest = int(costs.argmax())
        each = sample[0].nbytes // len(sample[0])
        fixed = self._lengths(features.take(np.array([longest, int(costs.argmin())])))
        return each * (int(costs.sum()) if fixed[0] != fixed[1] else fixed[0] * len(costs))

    def _lengths(self, features: Sequence[np.ndarray]) -> list[int]:
        """Tokens of each text; all of the padding too where models read it, which then is the same for all texts."""
        shortest = min(features, key=len)
        padded = self.encoder.preprocessor.collate([shortest])['input_ids'].shape[1]
        return [len(row) for row in features] if padded == len(shortest) else [padded] * len(features)


def make_cut(encoder: Encoder, depth: int, features: Rows, device: torch.device) -> Cut:
    """Cut an encoder behind its first `depth` layer groups.

    :raises CannotCut: it is of a kind that cannot be cut there.
    """
    head = {id(parameter) for parameter in encoder.head.parameters()}
    if not any(parameter.requires_grad and id(parameter) not in head for parameter in encoder.parameters()):
        return PooledCut(encoder, depth)
    if isinstance(encoder, TextEncoder) and encoder.can_split:
        return PackedCut(encoder, depth)
    return (PaddedCut if encoder.modality == 'text' else HookedCut)(encoder, depth, features, device)


@contextmanager
def _without_head(encoder: Encoder) -> Iterator[Encoder]:
    """The encoder gives pooled vectors."""
    head, normalize = encoder.head, encoder.normalize
    encoder.head, encoder.normalize = nn.ModuleList(), False
    try:
        yield encoder
    finally:
        encoder.head, encoder.normalize = head, normalize


def _check(output: Any, count: int) -> None:
    if not isinstance(output, Tensor) or not output.is_floating_point() or len(output) != count:
        raise CannotCut('a layer gives something else than numbers for every item')
