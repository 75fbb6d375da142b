"""Texts of unequal lengths as one stream of tokens: their order, attention within each, pooling of each.

The stream is sorted by length, which makes all texts of one length one slice of it, a tensor without padding.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetuner.inference.dropout import drop
from finetuner.inference.layers import pool
from finetuner.inference.transfer import on_device


class Stream:
    """How the texts of a batch lie in their stream of tokens: the shortest first.

    :param lengths: of the texts, int64 [B], each at least 1.
    :param device: of the stream; None is that of the lengths.
    :param start: how many layer groups have been computed already; then `hidden` is what they gave.
    :param hidden: float [N, D].
    :param stop: how many layer groups to compute in all; None is all, and what comes after them.
    :param multiple: the stream is filled up to a multiple of so many tokens, with some that are of no text.
    """

    def __init__(
        self,
        lengths: Tensor,
        device: torch.device | None = None,
        start: int = 0,
        hidden: Tensor | None = None,
        stop: int | None = None,
        multiple: int = 1,
    ):
        self.lengths = lengths.cpu().numpy()
        self.device = device or lengths.device
        self.start, self.hidden, self.stop = start, hidden, stop
        self.order = np.argsort(self.lengths, kind='stable')
        self.is_sorted = bool((np.diff(self.order) == 1).all())
        self.sorted = self.lengths[self.order]
        lengths_of_groups, counts = np.unique(self.sorted, return_counts=True)
        self.groups: list[tuple[int, int]] = list(zip(counts.tolist(), lengths_of_groups.tolist(), strict=True))
        self.sizes = [count * length for count, length in self.groups]
        self.filling = -sum(self.sizes) % multiple

    @cached_property
    def ends(self) -> Tensor:
        """Where each text ends, and 0 before, int64 [B + 1]."""
        return self._put(np.cumsum([0, *self.sorted]))

    @property
    def longest(self) -> int:
        return self.groups[-1][1]

    @cached_property
    def positions(self) -> Tensor:
        """The place of each token in its text, int64 [1, N]."""
        starts = np.repeat(np.cumsum(self.sorted) - self.sorted, self.sorted)
        return self._put(np.append(np.arange(len(starts)) - starts, np.zeros(self.filling, int)))[None]

    @cached_property
    def _sources(self) -> np.ndarray:
        """Where each token of the sorted stream is in the given one."""
        shifts = (np.cumsum(self.lengths) - self.lengths)[self.order] - (np.cumsum(self.sorted) - self.sorted)
        return np.arange(self.sorted.sum()) + np.repeat(shifts, self.sorted)

    def sort(self, tokens: Tensor) -> Tensor:
        """From the order of the caller to that of the stream, [N, ...]."""
        return tokens if self.is_sorted else tokens[self._put(self._sources)]

    def unsort(self, tokens: Tensor) -> Tensor:
        """The other way round, [N, ...]."""
        return tokens if self.is_sorted else tokens[self._put(np.argsort(self._sources))]

    def unsort_texts(self, texts: Tensor) -> Tensor:
        """The same for one vector per text, [B, ...]."""
        return texts if self.is_sorted else texts[self._put(np.argsort(self.order))]

    def split(self, states: Tensor) -> list[Tensor]:
        """[N, ...] to one [texts, length, ...] per group: views, not copies. What fills it up is left out."""
        parts = states[: len(states) - self.filling].split(self.sizes)
        return [part.unflatten(0, group) for part, group in zip(parts, self.groups, strict=True)]

    def _put(self, array: np.ndarray) -> Tensor:
        return on_device(array, self.device)


def attend(
    stream: Stream,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention of each text to itself.

    :param query: [1, H, N, D]; `key` and `value` may have fewer heads, each for several of the query's.
    :param window: tokens see those less than this far away; None is all.
    :param bias: is added to the scores, [1, H, T, T] with T the longest text's length or more.
    :return: [1, N, H, D].
    """
    if query.device.type == 'cuda' and bias is None:
        attended = _attend_on_gpu(stream, query, key, value, dropout, scale, causal, window)
        if attended is not None:
            return attended
    shared = key.shape[1] != query.shape[1]
    parts = []
    groups = (stream.split(states[0].transpose(0, 1)) for states in (query, key, value))
    for queries, keys, values in zip(*groups, strict=True):
        length = queries.shape[1]
        mask = _mask(length, causal, window, bias, query)
        if dropout and query.device.type == 'cpu' and mask is None and not (causal or shared):
            part = _attend_with_dropout(queries, keys, values, dropout, scale)
        else:
            part = nn.functional.scaled_dot_product_attention(
                queries.transpose(1, 2),
                keys.transpose(1, 2),
                values.transpose(1, 2),
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=causal and mask is None,
                scale=scale,
                enable_gqa=shared,
            )
        parts.append(part.transpose(1, 2).flatten(0, 1))
    if stream.filling:  # which has nothing to attend to
        parts.append(parts[0].new_zeros(stream.filling, *parts[0].shape[1:]))
    return torch.cat(parts).unsqueeze(0)


def _attend_with_dropout(query: Tensor, key: Tensor, value: Tensor, p: float, scale: float | None) -> Tensor:
    """What torch has no kernel for on a CPU, [texts, H, T, D]; the others are [texts, T, H, D]."""
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = (query.transpose(1, 2) @ key.permute(0, 2, 3, 1)).softmax(-1)
    return drop(weights, p) @ value.transpose(1, 2)


def _mask(length: int, causal: bool, window: int | None, bias: Tensor | None, like: Tensor) -> Tensor | None:
    """What is added to the scores of texts of one length, or which of them count; None where that is all."""
    near = window is not None and window < length
    if bias is None and not near:
        return None
    visible = None
    if causal or near:
        places = torch.arange(length, device=like.device)
        distance = places[:, None] - places
        visible = distance >= (0 if causal else -length)
        if window is not None:
            visible &= distance.abs() < window
    if bias is None:
        return visible
    bias = bias[..., :length, :length].to(like.dtype)
    return bias if visible is None else bias.masked_fill(~visible, -torch.inf)


def _attend_on_gpu(
    stream: Stream,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scale: float | None,
    causal: bool,
    window: int | None,
) -> Tensor | None:
    """The same by one kernel for all lengths, [1, N, H, D]; None where no kernel can."""
    states = [part[0].transpose(0, 1).contiguous() for part in (query, key, value)]
    near = -1 if window is None or window > stream.longest else window - 1
    if query.dtype in (torch.float16, torch.bfloat16):
        ends, longest = stream.ends.to(torch.int32), stream.longest
        arguments = (*states, ends, ends, longest, longest)
        sides = (near, 0 if causal else near)
        attended: Tensor
        if _has_flash_attention():
            from flash_attn import flash_attn_varlen_func

            attended = flash_attn_varlen_func(
                *arguments,
                dropout_p=dropout,
                softmax_scale=scale,
                causal=causal,
                window_size=sides,
                deterministic=torch.are_deterministic_algorithms_enabled(),
            )
            return attended[None]
        if not dropout:
            from torch.nn.attention.varlen import varlen_attn

            varlen: Any = varlen_attn
            shared = key.shape[1] != query.shape[1]
            attended = varlen(*arguments, scale=scale, window_size=sides, enable_gqa=shared)
            return attended[None]
    return _attend_nested(stream, states, dropout, scale, causal) if near < 0 else None


def _attend_nested(stream: Stream, states: list[Tensor], dropout: float, scale: float | None, causal: bool) -> Tensor:
    """By jagged tensors.

    :param states: query, key and value, [N, H, D].
    """
    shortest, longest = stream.groups[0][1], stream.longest
    heads = states[0].shape[1]
    query, key, value = (
        torch.nested.nested_tensor_from_jagged(
            part.repeat_interleave(heads // part.shape[1], 1), stream.ends, min_seqlen=shortest, max_seqlen=longest
        ).transpose(1, 2)
        for part in states
    )
    attended = nn.functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=causal, scale=scale
    )
    return attended.transpose(1, 2).values()[None]


@cache
def _has_flash_attention() -> bool:
    return importlib.util.find_spec('flash_attn') is not None


def pool_stream(hidden: Tensor, stream: Stream, pooling: str, options: Mapping[str, float]) -> Tensor:
    """One vector per text, [B, D], in the order of the stream.

    :param hidden: [N, D].
    :param pooling: as :func:`finetuner.inference.layers.pool` knows them.
    """
    if hidden.device.type == 'cpu':
        return torch.cat([pool(group, None, pooling, options) for group in stream.split(hidden)])
    return pool_segments(hidden, stream, pooling, options)


def pool_segments(hidden: Tensor, stream: Stream, pooling: str, options: Mapping[str, float]) -> Tensor:
    """The same by few kernels, whatever the number of lengths."""
    if pooling == 'cls':
        return hidden[stream.ends[:-1]]
    if pooling == 'lasttoken':
        return hidden[stream.ends[1:] - 1]
    lengths = stream.ends.diff()
    if pooling != 'gem':
        return torch.segment_reduce(hidden, pooling, lengths=lengths, axis=0)
    hidden = hidden.clamp(min=options['eps'])
    scale = torch.segment_reduce(hidden.detach(), 'max', lengths=lengths, axis=0)
    powers = (hidden / scale.repeat_interleave(lengths, 0)).pow(options['p'])
    return torch.segment_reduce(powers, 'mean', lengths=lengths, axis=0).pow(1 / options['p']) * scale
