"""How the items of a training set are embedded: from their features or from a cache, at once or in parts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from finetuner.inference.encoder import Encoder
from training.batch_size import longest_items, token_budget
from training.config import FitConfig
from training.data import Examples
from training.embed import Embedder, FeatureEmbedder
from training.feature_cache import FeatureCache
from training.freezing import frozen_groups
from training.progress import Reporter
from training.step import has_batch_statistics

logger = logging.getLogger(__name__)

# what goes through an encoder at once where gradient_cache=True asks for parts
FORCED_BUDGETS = {'text': 1024, 'image': 16, 'mesh': 16, 'tensor': 64}


def make_embedders(
    config: FitConfig,
    examples: Examples,
    encoders: Mapping[str, Encoder],
    accelerator: Accelerator,
    report: Reporter,
) -> dict[str, Embedder]:
    """What embeds the items of each encoder: where its first layers are frozen, what they give is computed once."""
    embedders: dict[str, Embedder] = {}
    for column in examples.columns:
        encoder, store = encoders[column.encoder], column.store
        if column.encoder in embedders:
            continue
        if frozen_groups(encoder):
            with report.stage(f'Caching features of {examples.name}'), accelerator.main_process_first():
                cache = FeatureCache.open_or_fill(encoder, store.features, store.keys, accelerator.device, report)
            if cache is not None:
                if config.compile:
                    logger.warning('compile has no effect on an encoder whose first layers are frozen and cached')
                embedders[column.encoder] = cache
                continue
        embedders[column.encoder] = FeatureEmbedder(encoder, store.features, pack=not config.compile)
    return embedders


def make_budgets(
    config: FitConfig, encoders: Mapping[str, Encoder], embedders: Mapping[str, Embedder], device: torch.device
) -> dict[str, int]:
    """What may go through each encoder at once.

    :raises ValueError: a gradient cache is asked for, and embeddings depend on the other items of a batch.
    """
    budgets = {}
    for name, embedder in embedders.items():
        if config.gradient_cache is False:
            continue
        if has_batch_statistics(encoders[name]):
            if config.gradient_cache is True:
                raise ValueError(
                    'gradient_cache=True cannot be used with a model that normalises over the batch (BatchNorm): '
                    'freeze it, or use gradient_cache="auto"'
                )
            continue
        # the graphs of all encoders are there at once, and on a CPU those of all its processes
        sharing = len(embedders) * (int(os.environ.get('LOCAL_WORLD_SIZE', 1)) if device.type == 'cpu' else 1)
        longest = int(embedder.costs(longest_items(embedder, 1)).max())
        budgets[name] = max(token_budget(encoders[name], embedder, device) // sharing, longest)
        if config.gradient_cache is True:
            budgets[name] = min(budgets[name], FORCED_BUDGETS[encoders[name].modality])
    return budgets
