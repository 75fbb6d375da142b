"""Low-rank adapters: few weights beside the frozen ones, trained instead of them and merged into them in the end."""

from __future__ import annotations

import logging
import re

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from finetuner.inference.encoder import Encoder
from training.freezing import frozen_groups, hold_frozen

logger = logging.getLogger(__name__)


class LoRAOptions(BaseModel):
    """Options of LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685), which peft computes.

    :param r: the rank of an adapter.
    :param alpha: an adapter's output counts `alpha / r` times.
    :param dropout: of an adapter's input.
    :param target_modules: the names of the layers that get one, or the last parts of their names, such as 'query'.
        None is all linear layers and attention of the backbone, and convolutions where those are most of it.
    :param layers: adapters are put into the last so many layer groups only, None is all that are not frozen.
    """

    model_config = ConfigDict(extra='forbid')

    r: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] | None = None
    layers: int | None = Field(default=None, ge=1)


def add_adapters(encoder: Encoder, options: LoRAOptions | bool = True) -> None:
    """Put adapters into the layer groups that are not frozen, and freeze all weights but theirs and the head's.

    The embeddings are at first what they were. Call it after `freeze`.

    :raises ValueError: there is no layer to adapt; the message names those that could be.
    """
    from peft import LoraConfig, inject_adapter_in_model

    options = options if isinstance(options, LoRAOptions) else LoRAOptions()
    groups = encoder.layer_groups()
    first = frozen_groups(encoder)
    if options.layers is not None:
        first = max(first, len(groups) - options.layers)
    layers = _layers(encoder, groups[first:])
    chosen = _targets(layers, options.target_modules)
    if not chosen:
        names = sorted({name.rpartition('.')[2] for name in layers})
        wanted = f' of target_modules {options.target_modules}' if options.target_modules else ''
        raise ValueError(
            f'lora: none{wanted} is in the layers that are trained; they have {", ".join(names) or "none to adapt"}'
        )
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        target_modules='|'.join(re.escape(name) for name in chosen),
    )
    inject_adapter_in_model(config, encoder)
    encoder.head.requires_grad_(True)
    hold_frozen(encoder)
    logger.info('LoRA of rank %d in %d layers', options.r, len(chosen))


def merge_adapters(encoder: Encoder) -> None:
    """Add what adapters have learned to the weights beside them, and take them out: the modules and the names of their
    weights are what they were before `add_adapters`. Does nothing without adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    done: list[str] = []
    for name, module in list(encoder.named_modules()):
        if not isinstance(module, BaseTunerLayer) or any(name.startswith(outer) for outer in done):
            continue
        if hasattr(module, 'unload_and_optionally_merge_module'):
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            module.merge(safe_merge=True)
            plain = module.get_base_layer()
        parent, _, child = name.rpartition('.')
        setattr(encoder.get_submodule(parent), child, plain)
        done.append(f'{name}.')
    if done:
        del encoder.peft_config


def _layers(encoder: Encoder, groups: list[nn.Module]) -> dict[str, nn.Module]:
    """The layers of some groups that can have an adapter, by name.

    Only layers of exactly these types: what derives from them may treat its weights otherwise.
    """
    from transformers.pytorch_utils import Conv1D

    inside = {id(module) for group in groups for module in group.modules()}
    attention = [module for module in encoder.modules() if isinstance(module, nn.MultiheadAttention)]
    # their projections are not called but read, adapters in them would do nothing
    within = {id(part) for module in attention for part in module.modules() if part is not module}
    layers = {}
    for name, module in encoder.named_modules():
        if id(module) not in inside or id(module) in within:
            continue
        if type(module) is nn.MultiheadAttention:
            fits = module._qkv_same_embed_dim
        elif type(module) in (nn.Conv1d, nn.Conv2d):
            fits = module.groups == 1
        else:
            fits = type(module) in (nn.Linear, Conv1D)
        if fits and all(parameter.requires_grad for parameter in module.parameters()):
            layers[name] = module
    return layers


def _targets(layers: dict[str, nn.Module], wanted: list[str] | None) -> list[str]:
    """The names of the layers that are to have an adapter."""
    if wanted is not None:
        return [name for name in layers if any(name == last or name.endswith(f'.{last}') for last in wanted)]
    convolutions = {name for name, layer in layers.items() if isinstance(layer, (nn.Conv1d, nn.Conv2d))}
    weights = {name: sum(weight.numel() for weight in layer.parameters()) for name, layer in layers.items()}
    if 2 * sum(weights[name] for name in convolutions) > sum(weights.values()):
        return list(layers)
    return [name for name in layers if name not in convolutions]
