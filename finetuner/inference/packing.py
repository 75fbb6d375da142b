"""Texts through a transformers backbone without padding: all their tokens as one stream.

Linear layers, norms and activations do not care which text a token is of. Attention does: it is computed text by text.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetuner.inference.dropout import drop
from finetuner.inference.layer_groups import evaluating, find_layers
from finetuner.inference.streams import Stream, attend

_NAME = 'finetuner_packed'

# positions are counted from the padding id on, so that the table holds that many more than the longest input
OFFSET_POSITIONS = {
    'camembert',
    'data2vec-text',
    'longformer',
    'mpnet',
    'roberta',
    'roberta-prelayernorm',
    'xlm-roberta',
    'xlm-roberta-xl',
}
# the longest text of the trial: beyond the windows of local attention that models have
_PROBE_LENGTH = 80
_PROBE_TOLERANCE = 1e-4
# arguments of attention that change its result in ways that are not known here
_UNKNOWN = ('softcap', 's_aux', 'cache')


class CannotPack(Exception):
    """The backbone does something that needs padded texts."""


_stream: ContextVar[Stream | None] = ContextVar('stream', default=None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for attention; outside of a packed forward it does what the library does."""
    stream = _stream.get()
    if stream is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            position_bias=position_bias,
            **options,
        )
    if any(options.get(name) is not None for name in _UNKNOWN) or key.shape[2] != query.shape[2]:
        raise CannotPack
    states = attend(
        stream,
        query,
        key,
        value,
        dropout=dropout,
        scale=scaling,
        causal=bool(getattr(module, 'is_causal', True) if is_causal is None else is_causal),
        window=sliding_window,
        bias=position_bias,
    )
    return states, None


def _attention_mask(*args: Any, **options: Any) -> Tensor | None:
    return sdpa_mask(*args, **options) if _stream.get() is None else None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _attention_mask)


class _Reached(Exception):
    """Ends a forward before a layer that is not to be computed."""

    def __init__(self, hidden: Tensor):
        super().__init__()
        self.hidden = hidden


class PackedBackbone:
    """Runs a backbone on streams of tokens; in between the backbone is as it was.

    Several threads may do so at once, and others may call the backbone itself meanwhile.

    :raises ValueError: the backbone is no stack of layers.
    """

    def __init__(self, backbone: PreTrainedModel):
        self.backbone = backbone
        self.layers = find_layers(backbone)
        self._arguments = set(inspect.signature(backbone.forward).parameters)
        offset = backbone.config.model_type in OFFSET_POSITIONS
        self._first_position = (backbone.config.pad_token_id or 0) + 1 if offset else 0
        self._lock = threading.Lock()
        self._running = 0
        self._returns_tuples = False  # a layer does, instead of hidden states alone
        self._undo = ExitStack()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.backbone,)  # a copy runs the copy of the backbone

    @property
    def groups(self) -> int:
        """How many layer groups there are."""
        return len(self.layers) + 1

    @cached_property
    def can_pack(self) -> bool:
        """Whether a stream gets the hidden states that the padded texts get. Is tried out at the first use."""
        if getattr(self.backbone.config, 'attention_chunk_size', None):  # too large to show in the trial
            return False
        return self._agrees(lambda tokens, lengths: self.run(tokens, Stream(lengths)))

    @cached_property
    def can_split(self) -> bool:
        """Whether a run can be interrupted and taken up again between any two layer groups."""

        def run_in_parts(tokens: Tensor, lengths: Tensor) -> Tensor:
            hidden = self.run(tokens, Stream(lengths, stop=1))
            for done in range(1, self.groups):
                hidden = self.run(tokens, Stream(lengths, start=done, hidden=hidden, stop=done + 1))
            return hidden

        return self.can_pack and self._agrees(run_in_parts)

    def _agrees(self, run: Callable[[Tensor, Tensor], Tensor]) -> bool:
        """Whether texts at random get the same hidden states by `run` as padded, to a relative difference of 1e-4."""
        config, device = self.backbone.config, self.backbone.device
        longest = min(_PROBE_LENGTH, getattr(config, 'max_position_embeddings', None) or _PROBE_LENGTH)
        lengths = torch.tensor([1, 3, 3, max(1, longest - self._first_position)], device=device)
        mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
        padding = config.pad_token_id or 0
        choices = torch.randint(1, config.vocab_size, mask.shape, generator=torch.Generator().manual_seed(0))
        tokens = torch.where(mask, (choices.to(device) + padding) % config.vocab_size, padding)
        with evaluating(self.backbone):
            try:
                expected = self.backbone(input_ids=tokens, attention_mask=mask.long()).last_hidden_state[mask]
                found = run(tokens[mask], lengths)
            except (CannotPack, IndexError, RuntimeError, TypeError, ValueError):
                return False
        return bool((found - expected).abs().max() <= _PROBE_TOLERANCE * expected.abs().max().clamp(min=1))

    def run(self, tokens: Tensor, stream: Stream) -> Tensor:
        """Hidden states of the stream, float [N, D], in its order.

        :param tokens: int64 [N], in the order of the stream.
        :raises CannotPack: the backbone's attention is not known here.
        """
        tokens = nn.functional.pad(tokens, (0, stream.filling))
        inputs: dict[str, Any] = {'input_ids': tokens[None], 'attention_mask': None, 'return_dict': True}
        if 'position_ids' in self._arguments:
            inputs['position_ids'] = stream.positions + self._first_position
        if 'use_cache' in self._arguments:
            inputs['use_cache'] = False
        reset = _stream.set(stream)
        try:
            with self._switched():
                return self.backbone(**inputs).last_hidden_state[0]
        except _Reached as reached:
            return reached.hidden[0]
        finally:
            _stream.reset(reset)

    @contextmanager
    def _switched(self) -> Iterator[None]:
        """Have the backbone heed the stream: its attention, and whatever else looks beyond a single token."""
        with self._lock:
            if not self._running:
                self._switch()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._undo.close()

    def _switch(self) -> None:
        configs = {id(config): config for module in self.backbone.modules() if (config := _config(module))}
        for config in configs.values():
            self._undo.callback(setattr, config, '_attn_implementation', config._attn_implementation)
            config._attn_implementation = _NAME
        for number, layer in enumerate(self.layers, 1):
            self._replace(layer, 'forward', partial(self._run_layer, layer, layer.forward, number))
        for module in self.backbone.modules():
            if type(module) is nn.Dropout and module.training and self.backbone.device.type == 'cpu':
                self._replace(module, 'forward', partial(drop, p=module.p))
            for method, replacement in _REPLACEMENTS.get(type(module).__name__, {}).items():
                self._replace(module, method, partial(replacement, module, getattr(module, method)))

    def _run_layer(
        self,
        layer: nn.Module,
        forward: Callable[..., Any],
        number: int,
        hidden_states: Tensor,
        *args: Any,
        **options: Any,
    ) -> Any:
        """One layer, unless the stream begins after or ends before it. `number` is that of its group."""
        stream = _stream.get()
        if stream is None:
            return forward(hidden_states, *args, **options)
        if number < stream.start:
            if skip := _SKIPS.get(type(layer).__name__):
                return skip(layer, stream, hidden_states, *args)
            return (hidden_states,) if self._returns_tuples else hidden_states
        if number == stream.stop:
            raise _Reached(hidden_states)
        if number == stream.start and stream.hidden is not None:
            hidden_states, stream.hidden = stream.hidden[None], None  # a shared layer is called again with its own
        result = forward(hidden_states, *args, **options)
        self._returns_tuples = isinstance(result, tuple)
        return result

    def _replace(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        """Give one module another method."""
        if (own := vars(module).get(name)) is not None:
            self._undo.callback(setattr, module, name, own)
        else:
            self._undo.callback(delattr, module, name)
        setattr(module, name, function)


def _config(module: nn.Module) -> Any:
    config = getattr(module, 'config', None)
    return config if isinstance(config, PreTrainedConfig) else None


def _bias_of_t5(module: Any, compute: Callable[..., Tensor], queries: int, keys: int, **options: Any) -> Tensor:
    stream = _stream.get()
    return compute(queries, keys, **options) if stream is None else compute(stream.longest, stream.longest, **options)


def _skip_t5(
    layer: Any, stream: Stream, hidden: Tensor, mask: Tensor | None, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, None]:
    """The first layer computes the bias, and each hands it on."""
    if bias is None:
        bias = layer.layer[0].SelfAttention.compute_bias(stream.longest, stream.longest)
    return hidden, bias, None


def _bias_of_mpnet(module: Any, compute: Callable[..., Tensor], hidden: Tensor, *args: Any, **options: Any) -> Tensor:
    stream = _stream.get()
    return compute(hidden if stream is None else hidden[:, : stream.longest], *args, **options)


def _attention_of_mpnet(
    module: Any,
    forward: Callable[..., Any],
    hidden: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> Any:
    stream = _stream.get()
    if stream is None:
        return forward(hidden, attention_mask, position_bias, **options)
    heads = (*hidden.shape[:-1], module.num_attention_heads, module.attention_head_size)
    query, key, value = (part(hidden).view(heads).transpose(1, 2) for part in (module.q, module.k, module.v))
    dropout = module.dropout.p if module.training else 0.0
    return (module.o(attend(stream, query, key, value, dropout=dropout, bias=position_bias).flatten(2)),)


# methods that compute something for all pairs of tokens, by the name of their class
_REPLACEMENTS: dict[str, dict[str, Callable[..., Any]]] = {
    'T5Attention': {'compute_bias': _bias_of_t5},
    'MT5Attention': {'compute_bias': _bias_of_t5},
    'UMT5Attention': {'compute_bias': _bias_of_t5},
    'MPNetEncoder': {'compute_position_bias': _bias_of_mpnet},
    'MPNetSelfAttention': {'forward': _attention_of_mpnet},
}
# what layers give that are not computed, where that is more than the hidden states they get
_SKIPS: dict[str, Callable[..., Any]] = {'T5Block': _skip_t5, 'MT5Block': _skip_t5}
